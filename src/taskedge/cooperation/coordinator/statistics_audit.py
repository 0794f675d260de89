"""Compare the statistics of devices with the coordinator's own model and with one another, before the sum chooses.

A sum has no defense: one device that sends large numbers would choose the support alone, and one that names another
shared input would end the run. So a device whose statistics cannot be of this model is left out, with the reason, and
the others go on. Source: this project.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.candidates import candidates
from taskedge.backbone.cost_model import dummy_inputs
from taskedge.cooperation.protocol.payloads import Statistics
from taskedge.errors import TaskEdgeError
from taskedge.selection.statistics import INPUTS, LinearStatistics, measure

MAX_TO_OWN = 1e4
"""Most that a device's mean square of an input may be of the largest one of the coordinator's own model.

Its own inputs are random tokens or pixels, which an honest device's rows exceed by far less than this.
"""
MAX_TO_MEDIAN = 10.0
"""Most that a device's energy of a linear's inputs per token may be of the median device's."""
MAX_TOKENS_TO_MEDIAN = 4.0
"""Most tokens that a device counts with, as a multiple of the median device's."""
MIN_PARTS = 3
"""Devices below which there is no majority: a median of two is halfway to the liar."""
_PIXELS = 224
_FLOOR = 1e-6


@dataclass(frozen=True)
class StatisticsAudit:
    """Which statistics may be summed."""

    accepted: dict[str, Statistics]
    """By device; capped where the device claims too many tokens."""
    refused: dict[str, str]
    """Reasons by device."""
    capped: dict[str, str]
    """By device, with the numbers: whose statistics count less than it claims."""


def own_statistics(model: nn.Module, length: int, seed: int) -> dict[str, LinearStatistics] | None:
    """Return the statistics of the coordinator's own model over one random row; None if it cannot run one.

    Args:
        model: The base, without a support.
        length: Tokens of the row. A model of images gets random pixels.
        seed: Of the row. The global generator is left as it was.
    """
    linears = candidates(model)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            batch = _random_row(model, length)
            return dict(measure(model, linears, [batch], (INPUTS,)))
    except (TaskEdgeError, RuntimeError, ValueError, TypeError, AttributeError, KeyError):
        return None  # a model that takes other inputs: devices are compared with one another


def audit_statistics(
    parts: Mapping[str, Statistics], own: Mapping[str, LinearStatistics] | None, max_tokens: float, row_tokens: int
) -> StatisticsAudit:
    """Return which devices' statistics may be summed.

    Args:
        parts: Statistics by device, of the model's linears (:func:`read_statistics`).
        own: Those of the coordinator's own model; None: it cannot run.
        max_tokens: Most tokens that the rows of a request hold.
        row_tokens: Tokens of the row that ``own`` is of.
    """
    refused: dict[str, str] = {}
    shared = _majority(parts)
    if own:  # of a linear that did not run here, such as an expert without a token, the devices say what it shares
        shared |= {name: linear.shared_input for name, linear in own.items() if linear.tokens}
    for device, part in parts.items():
        reason = _reason_alone(part, shared, own, max_tokens, row_tokens)
        if reason:
            refused[device] = reason
    accepted = {device: part for device, part in parts.items() if device not in refused}
    if len(accepted) >= MIN_PARTS:
        refused |= _outliers(accepted)
        accepted = {device: part for device, part in accepted.items() if device not in refused}
    accepted, capped = _cap_tokens(accepted)
    return StatisticsAudit(accepted, refused, capped)


def _random_row(model: nn.Module, length: int) -> dict[str, Tensor]:
    config: Any = getattr(model, "config", None)
    if getattr(config, "vocab_size", None) is None and hasattr(config, "num_channels"):
        size = getattr(config, "image_size", None) or _PIXELS
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return {"pixel_values": torch.randn(1, config.num_channels, height, width)}
    return dummy_inputs(model, 1, length)


def _majority(parts: Mapping[str, Statistics]) -> dict[str, str]:
    """Return the shared input of each linear that most devices state."""
    names = next(iter(parts.values())).keys() if parts else ()
    stated = {name: [part[name].shared_input for part in parts.values() if part[name].tokens] for name in names}
    return {name: statistics.mode(inputs) for name, inputs in stated.items() if inputs}


def _reason_alone(
    part: Statistics,
    shared: Mapping[str, str],
    own: Mapping[str, LinearStatistics] | None,
    max_tokens: float,
    row_tokens: int,
) -> str:
    """Return why a device's statistics cannot be of this model, or an empty string."""
    for name, linear in part.items():
        if not linear.tokens:  # it never ran there: an expert to which no token was routed
            continue
        if linear.shared_input != shared.get(name):
            return f"statistics of linear {name!r} with the input of {linear.shared_input!r}, not of {shared[name]!r}"
        if own is None or linear.input_squares is None:
            continue
        mine = own[name]
        most = max_tokens * max(1.0, mine.tokens / row_tokens)  # a convolution has more positions than the row
        if linear.tokens > most:
            return f"statistics of linear {name!r} over {linear.tokens:,} tokens: its rows hold {most:,.0f} at most"
        if not mine.tokens:  # its inputs are compared with those of other devices only
            continue
        assert mine.input_squares is not None
        largest_own = max(_FLOOR, float(mine.input_squares.max()) / max(1, mine.tokens))
        largest = float(linear.input_squares.max()) / linear.tokens
        if largest > MAX_TO_OWN * largest_own:
            return (
                f"statistics of linear {name!r} with a mean square of {largest:.3g} per token: random inputs give "
                f"{largest_own:.3g}, and {MAX_TO_OWN:g} times that is the most"
            )
    return ""


def _energy(linear: LinearStatistics) -> float:
    assert linear.input_squares is not None
    return float(linear.input_squares.sum()) / max(1, linear.tokens)


def _outliers(parts: Mapping[str, Statistics]) -> dict[str, str]:
    """Return the devices whose inputs have far more energy per token than those of the median device, with reasons."""
    found: dict[str, str] = {}
    for name in next(iter(parts.values())):
        energies = {device: _energy(part[name]) for device, part in parts.items() if part[name].tokens}
        if len(energies) < min(MIN_PARTS, len(parts)):  # of an expert that few devices route tokens to
            continue
        median = max(_FLOOR, statistics.median(energies.values()))
        for device, energy in energies.items():
            if energy > MAX_TO_MEDIAN * median:
                found.setdefault(
                    device,
                    f"statistics of linear {name!r} with {energy / median:.3g} times the energy per token of the "
                    f"median device: {MAX_TO_MEDIAN:g} times is the most",
                )
    return found


def _cap_tokens(parts: Mapping[str, Statistics]) -> tuple[dict[str, Statistics], dict[str, str]]:
    """Scale down the statistics of devices with many times the tokens of the median device.

    Statistics within the cap are passed on to the last bit.
    """
    if len(parts) < MIN_PARTS:
        return dict(parts), {}
    tokens = {device: max(linear.tokens for linear in part.values()) for device, part in parts.items()}
    most = MAX_TOKENS_TO_MEDIAN * statistics.median(tokens.values())
    capped: dict[str, str] = {}
    accepted: dict[str, Statistics] = {}
    for device, part in parts.items():
        accepted[device] = part
        if tokens[device] > most:
            factor = most / tokens[device]
            accepted[device] = {name: _scaled(linear, factor) for name, linear in part.items()}
            capped[device] = (
                f"it states {tokens[device]:,} tokens and counts with {most:,.0f}: {MAX_TOKENS_TO_MEDIAN:g} times the "
                "median device's"
            )
    return accepted, capped


def _scaled(linear: LinearStatistics, factor: float) -> LinearStatistics:
    assert linear.input_squares is not None
    return replace(
        linear,
        tokens=max(min(1, linear.tokens), round(linear.tokens * factor)),
        input_squares=linear.input_squares * factor,
    )
