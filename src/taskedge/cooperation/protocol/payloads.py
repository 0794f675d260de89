"""Supports and statistics as messages: what they hold, in as few bytes as that takes, and read back with distrust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.errors import InputError
from taskedge.selection.statistics import LinearStatistics
from taskedge.selection.support import LinearSupport, Support

Statistics = Mapping[str, LinearStatistics]


def support_facts(support: Support) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A support as facts and tensors: int32 places where they suffice, an input's norms once for all its readers."""
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[Any]] = {}
    for name, linear in support.linears.items():
        small = linear.shape[0] * linear.shape[1] < 2**31
        tensors[f"flat/{name}"] = linear.flat.to(torch.int32) if small else linear.flat
        norms = None
        if linear.input_rms is not None:
            first = support.linears.get(linear.reads)
            shared = (
                first is not None and first.input_rms is not None and torch.equal(first.input_rms, linear.input_rms)
            )
            norms = linear.reads if shared else name
            tensors[f"rms/{norms}"] = linear.input_rms
        shapes[name] = [*linear.shape, linear.reads, norms]
    about = {field.name: getattr(support, field.name) for field in fields(support) if field.name != "linears"}
    return {"about": about, "shapes": shapes}, tensors


def read_support(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Support:
    """The support in them.

    Raises:
        MessageError: there is no sound one.
    """
    try:
        linears = {
            name: LinearSupport.from_flat(
                (int(out), int(inputs)),
                tensors[f"flat/{name}"].to(torch.int64),
                str(reads),
                None if norms is None else tensors[f"rms/{norms}"],
            )
            for name, (out, inputs, reads, norms) in facts["shapes"].items()
        }
        about = facts["about"]
        return Support(linears=linears, **about | {"whole": tuple(about["whole"])})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ZeroDivisionError, InputError) as error:
        raise MessageError(f"a message without a sound support ({type(error).__name__}: {error})") from None


def statistics_message(statistics: Statistics) -> Message:
    """Sums over a device's calibration data: per distinct input float64 [in], and how many tokens they are of."""
    tensors = {
        f"squares/{seen.reads}": seen.input_squares for seen in statistics.values() if seen.input_squares is not None
    }
    facts = {"linears": {name: [seen.reads, seen.tokens] for name, seen in statistics.items()}}
    return Message("statistics", facts, tensors)


def read_statistics(message: Message, shapes: Mapping[str, tuple[int, int]]) -> dict[str, LinearStatistics]:
    """The statistics in a device's answer, for linears of these shapes (out, in).

    Raises:
        MessageError: other linears than those, or sums that cannot be sums of squares.
    """
    said = message.facts.get("linears")
    if not isinstance(said, dict) or set(said) != set(shapes):
        raise MessageError("statistics of other linears than those of the model")
    found = {}
    for name, (_, inputs) in shapes.items():  # in the model's order, which breaks ties of scores
        try:
            reads, tokens = said[name]
            squares = message.tensors[f"squares/{reads}"]
        except (TypeError, ValueError, KeyError):
            raise MessageError(f"no statistics of linear {name!r}") from None
        if reads not in shapes or not isinstance(tokens, int) or not 0 < tokens < 2**40:
            raise MessageError(f"statistics of linear {name!r} over {tokens!r} tokens of {reads!r}")
        if squares.dtype != torch.float64 or squares.shape != (inputs,):
            raise MessageError(f"statistics of linear {name!r}: {squares.dtype} {list(squares.shape)}")
        if not bool(torch.isfinite(squares).all()) or bool((squares < 0).any()):
            raise MessageError(f"statistics of linear {name!r} that are no sums of squares")
        found[name] = LinearStatistics(reads=reads, tokens=tokens, input_squares=squares)
    return found


def added(parts: Sequence[Statistics]) -> dict[str, LinearStatistics]:
    """The statistics of all devices together.

    Each is a float64 sum of float32 numbers, which is exact while they span less than 29 powers of two: then neither
    the order nor the grouping changes a bit, and the support is the one that a central run over the same batches gives.

    Raises:
        MessageError: devices disagree about which linears share an input.
    """
    total = {name: LinearStatistics(seen.reads, seen.tokens, seen.input_squares) for name, seen in parts[0].items()}
    for part in parts[1:]:
        for name, seen in part.items():
            sofar = total[name]
            if seen.reads != sofar.reads or seen.input_squares is None or sofar.input_squares is None:
                raise MessageError(f"devices disagree about what linear {name!r} reads: is it the same model?")
            sofar.tokens += seen.tokens
            sofar.input_squares = sofar.input_squares + seen.input_squares
    return total
