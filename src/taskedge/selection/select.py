"""``select``: from a model, a few batches and a budget to a support."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.linears import candidates
from taskedge.errors import BudgetError, InputError
from taskedge.selection import statistics as calibration
from taskedge.selection.allocations import allocate
from taskedge.selection.rules import RULES
from taskedge.selection.statistics import INPUTS, LinearStatistics
from taskedge.selection.support import LinearSupport, Support


def select(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    budget: str | float | None = None,
    per_neuron: int | None = None,
    rule: str = "taskedge",
    allocation: str = "per_neuron",
    linears: Sequence[str] | None = None,
    max_columns: int | None = None,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    measured: dict[str, LinearStatistics] | None = None,
) -> Support:
    """Chooses which of the model's own weights to train; the model is not changed.

    Args:
        model: any module with ``nn.Linear`` (or Hugging Face ``Conv1D``) layers.
        batches: calibration data, any iterable of what the model takes (:func:`taskedge.selection.statistics.measure`).
            A few batches do. May be left out for rules that look at no data.
        budget: a share of all the model's parameters, ``"0.1%"`` or ``0.001``; met exactly.
        per_neuron: instead of ``budget``: whole entries per neuron, K.
        rule: what ranks the entries (``taskedge.selection.rules``).
        allocation: how they are spread (``taskedge.selection.allocations``).
        linears: names or glob patterns of the linears that take part; by default those of the repeated blocks.
        max_columns: at most so many distinct columns per linear, the ones with the largest sum of scores: fewer
            columns mean less to store for the backward pass (ours).
        seed: of the rule ``random``.
        on_batch: called with the number of calibration batches done.
        measured: instead of ``batches``: statistics of these linears that were taken before, or elsewhere and added.

    Returns:
        The support, on the CPU.

    Raises:
        BudgetError: a budget that is no share, selects nothing, or is more than the linears can carry.
        InputError: an unknown name, a model without linears, batches that are missing or cannot be used.
    """
    chosen_rule = RULES[rule]
    layers = candidates(model, linears)
    total = sum(parameter.numel() for parameter in model.parameters())
    shapes = {name: (layer.shape[0], _usable(layer.shape[1], max_columns)) for name, layer in layers.items()}
    entries, stated = _entries(budget, per_neuron, total, shapes)

    if measured is None:
        measured = _measure(model, layers, batches, chosen_rule.needs, on_batch, rule)
    generator = torch.Generator().manual_seed(seed)

    def scores(name: str) -> Tensor:
        score = chosen_rule.score(layers[name].weight, measured[name], generator)
        return score if max_columns is None else _only_best_columns(score, max_columns)

    flat = allocate(allocation, shapes, scores, entries)
    return Support(
        linears={
            name: LinearSupport.from_flat(layers[name].shape, index, measured[name].reads, _rms(measured[name]))
            for name, index in flat.items()
            if len(index)
        },
        model_parameters=total,
        rule=rule,
        allocation=allocation,
        budget=stated,
        settings={"seed": seed} | ({"max_columns": max_columns} if max_columns is not None else {}),
    )


def parse_share(budget: str | float) -> float:
    """``"0.1%"`` or ``0.001`` as a share in (0, 1].

    Raises:
        BudgetError: it is no number, or not in that range.
    """
    try:
        share = float(budget.rstrip("% ")) / 100 if isinstance(budget, str) and "%" in budget else float(budget)
    except (TypeError, ValueError):
        raise BudgetError(f"budget {budget!r} is no share: write '0.1%' or 0.001") from None
    if not 0 < share <= 1:
        raise BudgetError(
            f"budget {budget!r} is not above 0 (which trains nothing) and at most 100%: write '0.1%' or 0.001"
        )
    return share


def _entries(
    budget: str | float | None, per_neuron: int | None, total: int, shapes: dict[str, tuple[int, int]]
) -> tuple[int, str]:
    if (budget is None) == (per_neuron is None):
        raise BudgetError("give either budget (a share such as '0.1%') or per_neuron (whole entries per neuron)")
    if budget is not None:
        share = parse_share(budget)
        return round(share * total), budget if isinstance(budget, str) else f"{share:.6g}"
    assert per_neuron is not None
    if per_neuron < 1:
        raise BudgetError(f"per_neuron={per_neuron} trains nothing: give 1 or more")
    widest = max(columns for _, columns in shapes.values())
    if per_neuron > widest:
        raise BudgetError(f"per_neuron={per_neuron} is more than the {widest} inputs of the widest linear")
    return sum(rows * min(per_neuron, columns) for rows, columns in shapes.values()), f"{per_neuron} per neuron"


def _measure(
    model: nn.Module,
    layers: dict[str, Any],
    batches: Iterable[Any] | None,
    needs: tuple[str, ...],
    on_batch: Callable[[int], None] | None,
    rule: str,
) -> dict[str, LinearStatistics]:
    if batches is not None:
        return calibration.measure(model, layers, batches, {*needs, INPUTS}, on_batch)
    if needs:
        raise InputError(f"the rule {rule!r} looks at data: give a few calibration batches")
    return {name: LinearStatistics(reads=name) for name in layers}


def _rms(measured: LinearStatistics) -> Tensor | None:
    if measured.input_squares is None:
        return None
    return (measured.input_squares / max(measured.tokens, 1)).sqrt().float().cpu()


def _usable(columns: int, max_columns: int | None) -> int:
    if max_columns is None:
        return columns
    if max_columns < 1:
        raise BudgetError(f"max_columns={max_columns} leaves no column to choose from: give 1 or more")
    return min(columns, max_columns)


def _only_best_columns(score: Tensor, max_columns: int) -> Tensor:
    """The scores with all but the ``max_columns`` columns of the largest sum set to -inf."""
    keep = score.sum(0).topk(min(max_columns, score.shape[1])).indices
    masked = torch.full_like(score, -torch.inf)
    masked[:, keep] = score[:, keep]
    return masked
