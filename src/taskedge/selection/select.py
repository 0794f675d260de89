"""``select``: choose the weights to train, given a model, a few batches and a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.candidates import candidates, candidates_within
from taskedge.backbone.layers import Linear
from taskedge.errors import BudgetError, InputError
from taskedge.selection import DEFAULT_RANK
from taskedge.selection.allocations import (
    ALLOCATIONS,
    DEFAULT_ALLOCATION,
    PatternAllocation,
    Scores,
    Shapes,
    allocate,
)
from taskedge.selection.rules import RULES, Rule
from taskedge.selection.spt import SelectedParameters, trainable_vectors
from taskedge.selection.statistics import INPUTS, LinearStatistics, Statistics, measure
from taskedge.selection.support import LayerSupport, Support


def select(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    budget: str | float | None = None,
    per_neuron: int | None = None,
    rule: str = "taskedge",
    allocation: str | None = None,
    linears: Sequence[str] | None = None,
    depth: int | None = None,
    max_columns: int | None = None,
    rank: int = DEFAULT_RANK,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    statistics: Mapping[str, LinearStatistics] | None = None,
) -> Support:
    """Choose which of the model's own weights to train. The model is not changed.

    Args:
        model: any module with ``nn.Linear`` (or Hugging Face ``Conv1D``) layers, or convolutions in repeated blocks.
        batches: calibration data, any iterable of model inputs (:func:`taskedge.selection.statistics.measure`). A few
            batches suffice. Not needed for rules that read no data.
        budget: a share of all the model's parameters, ``"0.1%"`` or ``0.001``; met exactly.
        per_neuron: whole entries per neuron, K, instead of ``budget``.
        rule: how entries are scored (``taskedge.selection.rules``). ``"spt"`` also spreads them, and stays within the
            budget with entries, low-rank modules, biases and norms (:mod:`taskedge.selection.spt`).
        allocation: how entries are spread (``taskedge.selection.allocations``); by default ``"per_neuron"``. A pattern
            such as ``"2:4"`` is also the budget.
        linears: names or glob patterns of the layers to choose from; by default the linears and ``nn.Conv2d`` of the
            repeated blocks. Other convolutions and ``nn.Embedding`` must be named (``["*embed*"]``).
        depth: choose only from linears in this many blocks nearest the output, so that backpropagation ends there
            (:mod:`taskedge.backbone.blocks`). A budget is still a share of the whole model.
        max_columns: at most this many distinct columns per linear, the ones with the largest sums of scores: fewer
            columns mean less to store for the backward pass. Source: this project.
        rank: rank of the low-rank modules of ``"spt"``.
        seed: seed of the rule ``random``.
        on_batch: progress callback; receives the number of finished calibration batches.
        statistics: statistics of these linears, measured earlier or on other machines, instead of ``batches``.

    Returns:
        The support, on the CPU.

    Raises:
        BudgetError: the budget is not a share, selects nothing, exceeds what the linears can carry, or is given beside
            a rule or allocation that sets it.
        InputError: a name is unknown, the model has no linears, or batches are missing or unusable.
    """
    score_rule = RULES[rule]
    layers = candidates(model, linears) if depth is None else candidates_within(model, depth, linears)
    model_parameters = sum(parameter.numel() for parameter in model.parameters())
    shapes = {name: (layer.shape[0], _usable_columns(layer.shape[1], max_columns)) for name, layer in layers.items()}
    refuse_clashes(rule, allocation, budget=budget, per_neuron=per_neuron, max_columns=max_columns)
    if rank < 1:
        raise InputError(f"{rank} is not a rank of a low-rank module: give 1 or more")
    if allocation is None:
        allocation = DEFAULT_ALLOCATION
    num_entries, budget_text = _entries_of_budget(allocation, budget, per_neuron, model_parameters, shapes)
    vectors = trainable_vectors(model, layers, all_norms=linears is None, depth=depth) if score_rule.choose else {}

    if statistics is not None:
        measured = Statistics(statistics)
    else:
        measured = _measure(model, layers, batches, score_rule, on_batch, vectors)
    with measured:
        scores = _scores(score_rule, layers, measured, seed, max_columns)
        if score_rule.choose is None:
            selected = SelectedParameters(allocate(allocation, shapes, scores, num_entries))
        else:
            selected = score_rule.choose(shapes, scores, measured.vectors, num_entries, rank)

    settings = {"seed": seed}
    if depth is not None:
        settings["depth"] = depth
    if max_columns is not None:
        settings["max_columns"] = max_columns
    if score_rule.choose is not None:
        settings["rank"] = rank
    return Support(
        linears={
            name: LayerSupport.from_flat(
                layers[name].shape, flat, measured[name].shared_input, _input_rms(measured[name])
            )
            for name, flat in selected.entries.items()
            if len(flat)
        },
        model_parameters=model_parameters,
        low_rank=selected.low_rank,
        num_low_rank_parameters=sum(r * sum(layers[name].shape) for name, r in selected.low_rank.items()),
        full_parameters=selected.full_parameters,
        num_full_parameters=sum(vectors[name].numel() for name in selected.full_parameters),
        rule=rule,
        allocation=rule if score_rule.choose else allocation,
        budget=budget_text,
        settings=settings,
    )


def parse_share(budget: str | float) -> float:
    """Return ``"0.1%"`` or ``0.001`` as a share in (0, 1].

    Raises:
        BudgetError: the budget is not a number, or outside that range.
    """
    try:
        share = float(budget.rstrip("% ")) / 100 if isinstance(budget, str) and "%" in budget else float(budget)
    except (TypeError, ValueError):
        raise BudgetError(f"budget {budget!r} is not a share: write '0.1%' or 0.001") from None
    if not 0 < share <= 1:
        raise BudgetError(
            f"budget {budget!r} is not above 0 (which trains nothing) and at most 100%: write '0.1%' or 0.001"
        )
    return share


_NOUNS = {
    "budget": "the budget",
    "per_neuron": "the number of entries per neuron",
    "max_columns": "the maximum number of columns",
    "allocation": "the allocation",
}
"""Settings by their names in messages, which users of the command line and of Python read."""


def refuse_clashes(rule: str, allocation: str | None, **settings: object) -> None:
    """Raise BudgetError if a setting is given (not None) that the rule or the allocation determines itself."""
    if RULES[rule].choose is not None:
        owner = f"the rule {rule!r} spreads its budget itself"
        determined = ("per_neuron", "max_columns", "allocation")
        settings = settings | {"allocation": allocation}
    elif isinstance(ALLOCATIONS[allocation or DEFAULT_ALLOCATION], PatternAllocation):
        owner = f"the allocation {allocation!r} is itself the budget"
        determined = ("budget", "per_neuron", "max_columns")
    else:
        return
    clashes = [f"{_NOUNS[name]} ({settings[name]!r})" for name in determined if settings.get(name) is not None]
    if clashes:
        raise BudgetError(f"{owner}: leave out {' and '.join(clashes)}")


def _entries_of_budget(
    allocation: str, budget: str | float | None, per_neuron: int | None, model_parameters: int, shapes: Shapes
) -> tuple[int, str]:
    """Return (number of entries, the budget as text)."""
    pattern = ALLOCATIONS[allocation]
    if isinstance(pattern, PatternAllocation):
        return pattern.num_entries(shapes), allocation
    if (budget is None) == (per_neuron is None):
        raise BudgetError("give either a budget (a share such as '0.1%') or a number of entries per neuron")
    if budget is not None:
        share = parse_share(budget)
        return round(share * model_parameters), budget if isinstance(budget, str) else f"{share:.6g}"
    assert per_neuron is not None
    if per_neuron < 1:
        raise BudgetError(f"{per_neuron} entries per neuron train nothing: give 1 or more")
    widest = max(columns for _, columns in shapes.values())
    if per_neuron > widest:
        raise BudgetError(f"{per_neuron:,} entries per neuron are more than the {widest:,} inputs of the widest linear")
    return sum(rows * min(per_neuron, columns) for rows, columns in shapes.values()), f"{per_neuron} per neuron"


def _measure(
    model: nn.Module,
    layers: dict[str, Linear],
    batches: Iterable[Any] | None,
    rule: Rule,
    on_batch: Callable[[int], None] | None,
    vectors: dict[str, nn.Parameter],
) -> Statistics:
    if batches is not None:
        return measure(model, layers, batches, {*rule.needs, INPUTS}, on_batch, vectors)
    if rule.needs:
        raise InputError(f"the rule {rule.name!r} looks at data: give a few calibration batches")
    return Statistics({name: LinearStatistics(shared_input=name) for name in layers})


def _scores(rule: Rule, layers: dict[str, Linear], measured: Statistics, seed: int, max_columns: int | None) -> Scores:
    """Return a function that computes the scores of one linear, equal at every call."""
    generator = torch.Generator().manual_seed(seed)
    states: dict[str, Tensor] = {}  # state of the generator at the first call for each linear

    def scores(name: str) -> Tensor:
        generator.set_state(states.setdefault(name, generator.get_state()))
        score = rule.score(layers[name].weight, measured[name], generator)
        return score if max_columns is None else _best_columns_only(score, max_columns)

    return scores


def _input_rms(measured: LinearStatistics) -> Tensor | None:
    if measured.input_squares is None:
        return None
    return (measured.input_squares / max(measured.tokens, 1)).sqrt().float().cpu()


def _usable_columns(columns: int, max_columns: int | None) -> int:
    if max_columns is None:
        return columns
    if max_columns < 1:
        raise BudgetError(f"a limit of {max_columns} columns leaves none to choose from: give 1 or more")
    return min(columns, max_columns)


def _best_columns_only(score: Tensor, max_columns: int) -> Tensor:
    """Return the scores with all but the ``max_columns`` columns of the largest sums set to -inf."""
    keep = score.sum(0).topk(min(max_columns, score.shape[1])).indices
    masked = torch.full_like(score, -torch.inf)
    masked[:, keep] = score[:, keep]
    return masked
