"""Supports and statistics as messages: few bytes, and validated when they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskedge.cooperation.protocol.bounds import short_text
from taskedge.cooperation.protocol.message import Message, MessageError, MessageLimits
from taskedge.errors import InputError
from taskedge.io.container import content_digest
from taskedge.selection.statistics import LinearStatistics
from taskedge.selection.support import LayerSupport, Support, support_content, support_from_content

Statistics = Mapping[str, LinearStatistics]
"""Statistics of linears, by name."""
MAX_SQUARES = 1e60
"""Largest sum of squares of an input: the sum over any number of devices stays finite, in float32 roots too."""


def encode_support(support: Support) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a support as header fields (JSON-able) and tensors, for :func:`decode_support`.

    Indices are int32 if they fit. The norms of an input are sent once for all linears that share it.
    """
    header, tensors = support_content(support)
    for name, linear in support.linears.items():
        if linear.shape[0] * linear.shape[1] < 2**31:
            tensors[f"flat/{name}"] = linear.flat.to(torch.int32)
        rms_name = None
        if linear.input_rms is not None:
            rms_name = linear.shared_input if _has_norms_of_shared_input(support, linear) else name
            if rms_name != name:
                del tensors[f"rms/{name}"]
        header["shapes"][name].append(rms_name)
    return header, tensors


def decode_support(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Support:
    """Return the support that :func:`encode_support` encoded.

    Raises:
        MessageError: Header and tensors are no sound support.
    """
    try:
        return support_from_content(header, tensors)
    except InputError as error:
        raise MessageError(f"a message without a sound support ({error})") from None


def support_digest(support: Support) -> str:
    """Return a digest of what a support trains: its entries, step scales and attributes.

    Coordinator and device compute it from their own copies. Equal digests mean the same support to the last bit.
    """
    header, tensors = support_content(support)
    return content_digest(json.dumps(header, sort_keys=True), tensors)


def statistics_limits(shapes: Mapping[str, tuple[int, int]]) -> MessageLimits:
    """Return the largest message that can be statistics of a model with linears of these shapes."""
    names = sum(5 * len(name) + 400 for name in shapes)
    return MessageLimits(2**16 + names + 8 * sum(inputs for _, inputs in shapes.values()), len(shapes))


def statistics_message(statistics: Statistics) -> Message:
    """Return a message with sums over a device's calibration data: float64 [in] per distinct input, and tokens."""
    tensors = {
        f"squares/{linear.shared_input}": linear.input_squares
        for linear in statistics.values()
        if linear.input_squares is not None
    }
    header = {"linears": {name: [linear.shared_input, linear.tokens] for name, linear in statistics.items()}}
    return Message("statistics", header, tensors)


def read_statistics(message: Message, shapes: Mapping[str, tuple[int, int]]) -> dict[str, LinearStatistics]:
    """Return the statistics in a device's answer, in the order of ``shapes``.

    Args:
        message: What :func:`statistics_message` made.
        shapes: (out, in) of every linear of the model.

    Raises:
        MessageError: The message is about other linears, or its sums cannot be sums of squares.
    """
    linears = message.header.get("linears")
    if not isinstance(linears, dict) or set(linears) != set(shapes):
        raise MessageError("statistics of other linears than those of the model")
    foreign = message.tensors.keys() - {f"squares/{name}" for name in shapes}
    if foreign:
        raise MessageError(f"statistics with a tensor of no linear: {short_text(min(foreign))}")
    statistics = {}
    for name, (_, num_inputs) in shapes.items():  # in the model's order, which breaks ties of scores
        try:
            shared_input, tokens = linears[name]
            squares = message.tensors[f"squares/{shared_input}"]
        except Exception:  # whatever was put in their place
            raise MessageError(f"no statistics of linear {name!r}") from None
        if shared_input not in shapes or type(tokens) is not int or not 0 <= tokens < 2**40:
            stated = f"{short_text(tokens)} tokens of {short_text(shared_input)}"
            raise MessageError(f"statistics of linear {name!r} over {stated}")
        if squares.dtype != torch.float64 or squares.shape != (num_inputs,):
            raise MessageError(f"statistics of linear {name!r}: {squares.dtype} {list(squares.shape)}")
        if not bool(torch.isfinite(squares).all()) or bool((squares < 0).any()) or bool((squares > MAX_SQUARES).any()):
            raise MessageError(f"statistics of linear {name!r} that are no sums of squares")
        if not tokens and bool(squares.any()):  # no token was routed to it, or the model never calls it
            raise MessageError(f"statistics of linear {name!r} over no tokens that are not 0")
        statistics[name] = LinearStatistics(shared_input=shared_input, tokens=tokens, input_squares=squares)
    return statistics


def sum_statistics(parts: Sequence[Statistics]) -> dict[str, LinearStatistics]:
    """Return the sum of the statistics of several devices.

    Each is a float64 sum of float32 numbers, which is exact while they span less than 29 powers of two. Then neither
    the order nor the grouping changes a bit, and the support is the one of a central run over the same batches.

    Raises:
        MessageError: Devices disagree about which linears share an input.
    """
    total = {
        name: LinearStatistics(linear.shared_input, linear.tokens, linear.input_squares)
        for name, linear in parts[0].items()
    }
    for part in parts[1:]:
        for name, linear in part.items():
            so_far = total[name]
            if not linear.tokens:  # it never ran there, so its input is not known
                continue
            if not so_far.tokens:
                total[name] = LinearStatistics(linear.shared_input, linear.tokens, linear.input_squares)
                continue
            if (
                linear.shared_input != so_far.shared_input
                or linear.input_squares is None
                or so_far.input_squares is None
            ):
                raise MessageError(f"devices disagree about the input of linear {name!r}: is it the same model?")
            so_far.tokens += linear.tokens
            so_far.input_squares = so_far.input_squares + linear.input_squares
    return total


def _has_norms_of_shared_input(support: Support, linear: LayerSupport) -> bool:
    first = support.linears.get(linear.shared_input)
    if first is None or first.input_rms is None or linear.input_rms is None:
        return False
    return torch.equal(first.input_rms, linear.input_rms)
