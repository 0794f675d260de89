"""``select``: from a model, a few batches and a budget to a support."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.linears import Linear, candidates, candidates_within
from taskedge.errors import BudgetError, InputError
from taskedge.selection import RANK
from taskedge.selection import statistics as calibration
from taskedge.selection.allocations import ALLOCATIONS, DEFAULT, Scores, Shapes, allocate
from taskedge.selection.allocations.n_of_m import NOfM
from taskedge.selection.rules import RULES, Rule
from taskedge.selection.spt import Chosen, vectors_beside
from taskedge.selection.statistics import INPUTS, LinearStatistics, Statistics
from taskedge.selection.support import LinearSupport, Support


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
    rank: int = RANK,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    measured: Mapping[str, LinearStatistics] | None = None,
) -> Support:
    """Chooses which of the model's own weights to train; the model is not changed.

    Args:
        model: any module with ``nn.Linear`` (or Hugging Face ``Conv1D``) layers, or convolutions in repeated blocks.
        batches: calibration data, any iterable of what the model takes (:func:`taskedge.selection.statistics.measure`).
            A few batches do. May be left out for rules that look at no data.
        budget: a share of all the model's parameters, ``"0.1%"`` or ``0.001``; met exactly.
        per_neuron: instead of ``budget``: whole entries per neuron, K.
        rule: what ranks the entries (``taskedge.selection.rules``). ``"spt"`` also spreads them, and stays within the
            budget with entries, low-rank modules, biases and norms (:mod:`taskedge.selection.spt`).
        allocation: how they are spread (``taskedge.selection.allocations``); by default ``"per_neuron"``. A pattern
            such as ``"2:4"`` is the budget as well.
        linears: names or glob patterns of the layers that take part; by default the linears and ``nn.Conv2d`` of the
            repeated blocks. Only named ones (``["*embed*"]``) are convolutions elsewhere and ``nn.Embedding``.
        depth: only linears in so many of the blocks nearest the output take part, so that backpropagation ends there
            (:mod:`taskedge.backbone.blocks`). A budget is a share of the whole model all the same.
        max_columns: at most so many distinct columns per linear, the ones with the largest sum of scores: fewer
            columns mean less to store for the backward pass (ours).
        rank: of the low-rank modules of ``"spt"``.
        seed: of the rule ``random``.
        on_batch: called with the number of calibration batches done.
        measured: instead of ``batches``: statistics of these linears that were taken before, or elsewhere and added.

    Returns:
        The support, on the CPU.

    Raises:
        BudgetError: a budget that is no share, selects nothing, is more than the linears can carry, or is given beside
            a rule or allocation that leaves it no say.
        InputError: an unknown name, a model without linears, batches that are missing or cannot be used.
    """
    chosen_rule = RULES[rule]
    layers = candidates(model, linears) if depth is None else candidates_within(model, depth, linears)
    total = sum(parameter.numel() for parameter in model.parameters())
    shapes = {name: (layer.shape[0], _usable(layer.shape[1], max_columns)) for name, layer in layers.items()}
    refuse_clashes(rule, allocation, budget=budget, per_neuron=per_neuron, max_columns=max_columns)
    if rank < 1:
        raise InputError(f"rank={rank} makes no low-rank module: give 1 or more")
    entries, stated = _entries(allocation or DEFAULT, budget, per_neuron, total, shapes)
    vectors = vectors_beside(model, layers, all_norms=linears is None, depth=depth) if chosen_rule.chooses else {}

    taken = (
        _measure(model, layers, batches, chosen_rule, on_batch, vectors) if measured is None else Statistics(measured)
    )
    with taken as seen:
        scores = _scores(chosen_rule, layers, seen, seed, max_columns)
        if chosen_rule.chooses is None:
            chosen = Chosen(allocate(allocation or DEFAULT, shapes, scores, entries))
        else:
            chosen = chosen_rule.chooses(shapes, scores, seen.vectors, entries, rank)
    return Support(
        linears={
            name: LinearSupport.from_flat(layers[name].shape, index, seen[name].reads, _rms(seen[name]))
            for name, index in chosen.entries.items()
            if len(index)
        },
        model_parameters=total,
        low_rank=chosen.low_rank,
        low_rank_parameters=sum(width * sum(layers[name].shape) for name, width in chosen.low_rank.items()),
        whole=chosen.whole,
        whole_parameters=sum(vectors[name].numel() for name in chosen.whole),
        rule=rule,
        allocation=rule if chosen_rule.chooses else allocation or DEFAULT,
        budget=stated,
        settings={"seed": seed}
        | ({"depth": depth} if depth is not None else {})
        | ({"max_columns": max_columns} if max_columns is not None else {})
        | ({"rank": rank} if chosen_rule.chooses else {}),
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


def refuse_clashes(rule: str, allocation: str | None, **given: object) -> None:
    """Raises BudgetError where a rule or an allocation leaves no say to a setting that is given (not None)."""
    if RULES[rule].chooses is not None:
        who, barred = f"the rule {rule!r} spreads its budget itself", ("per_neuron", "max_columns", "allocation")
        given = given | {"allocation": allocation}
    elif isinstance(ALLOCATIONS[allocation or DEFAULT], NOfM):
        who, barred = f"the allocation {allocation!r} is itself the budget", ("budget", "per_neuron", "max_columns")
    else:
        return
    clashes = [f"{name}={given[name]!r}" for name in barred if given.get(name) is not None]
    if clashes:
        raise BudgetError(f"{who}: leave out {' and '.join(clashes)}")


def _entries(
    allocation: str, budget: str | float | None, per_neuron: int | None, total: int, shapes: Shapes
) -> tuple[int, str]:
    """(entries, how the budget was stated)."""
    spread = ALLOCATIONS[allocation]
    if isinstance(spread, NOfM):
        return spread.entries(shapes), allocation
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
    layers: dict[str, Linear],
    batches: Iterable[Any] | None,
    rule: Rule,
    on_batch: Callable[[int], None] | None,
    vectors: dict[str, nn.Parameter],
) -> Statistics:
    if batches is not None:
        return calibration.measure(model, layers, batches, {*rule.needs, INPUTS}, on_batch, vectors)
    if rule.needs:
        raise InputError(f"the rule {rule.name!r} looks at data: give a few calibration batches")
    return Statistics({name: LinearStatistics(reads=name) for name in layers})


def _scores(rule: Rule, layers: dict[str, Linear], measured: Statistics, seed: int, max_columns: int | None) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}  # where the generator stood for a linear, so that asking again gives the same

    def scores(name: str) -> Tensor:
        generator.set_state(drawn.setdefault(name, generator.get_state()))
        score = rule.score(layers[name].weight, measured[name], generator)
        return score if max_columns is None else _only_best_columns(score, max_columns)

    return scores


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
