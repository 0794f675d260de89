"""The cloud chooses the weights that a device trains, by the device's settings and calibration batches.

The rules read weights, which only the cloud has, and sums over inputs of the linears, which it computes from embedded
tokens. Rules that read gradients need labels, which it does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from taskedge.backbone.blocks import blocks_within
from taskedge.backbone.fingerprint import digest
from taskedge.cooperation.cut.cloud_base import CloudBase, Pass
from taskedge.cooperation.cut.cut_messages import CutRefused, whole_number
from taskedge.cooperation.protocol.bounds import short_text
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.payloads import encode_support
from taskedge.errors import InputError
from taskedge.selection.columns import COLUMN_SCORES, DEFAULT_COLUMN_SCORE
from taskedge.selection.rules import RULES
from taskedge.selection.select import select
from taskedge.selection.statistics import ABSOLUTE_INPUTS, INPUT_PRODUCTS, INPUTS, Statistics, measure

_TEXTS = ("rule", "allocation", "column_score")
_COUNTS = ("per_neuron", "columns", "max_columns", "max_rows", "depth")
SETTINGS = ("entries", *_TEXTS, *_COUNTS, "seed")
"""Settings of a selection; ``entries`` is the budget."""
_FROM_INPUTS = {INPUTS, ABSOLUTE_INPUTS, INPUT_PRODUCTS}


@dataclass
class Calibration:
    """Calibration batches of a device: embedded tokens and masks."""

    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    tokens: int = 0

    def add(self, hidden: Tensor, mask: Tensor, most: int) -> None:
        """Keep one more.

        Raises:
            InputError: These are more than ``most`` tokens.
        """
        self.tokens += mask.numel()
        if self.tokens > most:
            raise InputError(f"{self.tokens:,} tokens of calibration, and {most:,} are the most: lower --calibration")
        self.batches.append((hidden, mask))


def choose(
    base: CloudBase, calibration: Calibration, header: Mapping[str, Any], *, log: Callable[[str], None]
) -> Message:
    """Return the message with the support, the base's values there, and which linears share an input.

    Args:
        base: the cloud's half of the model.
        calibration: the device's batches.
        header: ``rank`` for a low-rank product in every linear, or the settings of a selection (``SETTINGS``).
        log: called with a line.

    Raises:
        CutRefused: The settings are no settings, or need what the cloud does not have.
        InputError, BudgetError: See :func:`taskedge.select`.
    """
    if not calibration.batches:
        raise CutRefused("a selection without calibration batches")
    if "rank" in header:
        rank = whole_number(header, "rank", 1, 4096)
        names = _within(base, header.get("depth"))
        shared = {name: linear.shared_input for name, linear in _measured(base, calibration, {INPUTS}).items()}
        digests = {name: digest(base.linears[name].weight) for name in names}
        fields = {"rank": rank, "digests": digests, "shared": {name: shared[name] for name in names}}
        return Message("support", fields)
    kwargs = _settings(header)
    rule = RULES[kwargs["rule"]]
    needs, what = {INPUTS, *rule.needs}, f"the rule {rule.name!r}"
    if kwargs.get("max_columns") is not None or kwargs.get("columns") is not None:
        score = kwargs.get("column_score") or DEFAULT_COLUMN_SCORE
        if needs <= _FROM_INPUTS and not set(COLUMN_SCORES[score].needs) <= _FROM_INPUTS:
            what = f"the column score {score!r}"
        needs |= set(COLUMN_SCORES[score].needs)
    if rule.choose is not None or rule.needs_dense_run or not needs <= _FROM_INPUTS:
        missing = ", ".join(sorted(needs - _FROM_INPUTS)) or "whole matrices"
        raise InputError(f"{what} needs {missing}, and the cloud sees inputs only: choose one that looks at inputs")
    entries = kwargs.pop("entries", None)
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    if entries is not None:
        kwargs["budget"] = entries / parameters
    with _measured(base, calibration, needs) as statistics:
        support = select(base.model, statistics=statistics, linears=list(base.linears), **kwargs)
    log(f"chose {support}")
    support_header, tensors = encode_support(support)
    for name, linear in support.linears.items():
        tensors[f"base/{name}"] = base.linears[name].read(linear.rows, linear.columns).cpu()
    return Message("support", {"support": support_header}, tensors)


def _measured(base: CloudBase, calibration: Calibration, needs: set[str]) -> Statistics:
    def batches() -> Iterator[dict[str, Tensor]]:
        for hidden, mask in calibration.batches:
            yield base.calibration_batch(Pass(hidden, mask))

    try:
        return measure(base.model, base.linears, batches(), needs)
    finally:
        base.end_calibration()


def _within(base: CloudBase, depth: Any) -> list[str]:
    if depth is None:
        return list(base.linears)
    inside = tuple(
        f"{block.name}." for block in blocks_within(base.model, whole_number({"depth": depth}, "depth", 1, 4096))
    )
    return [name for name in base.linears if name.startswith(inside)]


def _settings(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments for ``select`` from a device's message."""
    kwargs: dict[str, Any] = {}
    for name in SETTINGS:
        value = header.get(name)
        if value is None:
            continue
        if name in _TEXTS:
            if not isinstance(value, str) or len(value) > 100:
                raise CutRefused(f"the setting {name} is {short_text(value)}, and a name is needed")
            kwargs[name] = value
        else:
            kwargs[name] = whole_number(header, name, 0 if name == "seed" else 1, 2**53)
    if "rule" not in kwargs:
        raise CutRefused("a selection without a rule")
    return kwargs
