"""``select``: choose the weights to train, given a model, a few batches and a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.candidates import candidates, candidates_within
from taskedge.backbone.layers import Linear
from taskedge.backbone.storage.frozen_layer import num_weights
from taskedge.errors import BudgetError, InputError
from taskedge.selection import DEFAULT_RANK
from taskedge.selection.allocations import (
    ALLOCATIONS,
    BLOCK,
    DEFAULT_ALLOCATION,
    PatternAllocation,
    Scores,
    Shapes,
    allocate,
)
from taskedge.selection.avoid import Entries, avoided_entries, refuse_avoided, without
from taskedge.selection.columns import (
    COLUMN_SCORES,
    COLUMNS,
    DEFAULT_COLUMN_SCORE,
    ColumnScore,
    choose_columns,
    draw_columns,
    in_columns,
    refuse_no_columns,
)
from taskedge.selection.rows import choose_rows, in_rows, in_whole_weights, usable_rows
from taskedge.selection.rules import RULES, Rule
from taskedge.selection.spt import SelectedParameters, trainable_vectors
from taskedge.selection.statistics import INPUTS, LinearStatistics, Statistics, measure
from taskedge.selection.support import LayerSupport, Support, neuron_share_of


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
    columns: int | None = None,
    max_columns: int | None = None,
    max_rows: int | None = None,
    column_score: str | None = None,
    column_draws: int = 1,
    rank: int = DEFAULT_RANK,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    statistics: Mapping[str, LinearStatistics] | None = None,
    avoid: Sequence[Mapping[str, Entries]] = (),
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
        columns: train the entries in this many best columns of each input, which all linears that read it share: every
            entry there, or the ``per_neuron`` best of each neuron. Replaces the budget and the allocation. The batches
            show which linears share an input. Source: this project.
        max_columns: with a budget, at most this many distinct columns of each input, chosen like those of ``columns``:
            fewer columns mean less to store for the backward pass. Without batches each linear has its own.
        max_rows: at most this many neurons of each linear have entries: those with the largest sums of the rule's
            scores in the columns that may be used. With ``max_columns`` and the allocation ``"block"`` they replace the
            budget: every entry of the rows and columns trains. Source: this project.
        column_score: how columns are ranked (``taskedge.selection.columns``); by default ``"entries"``, the sum of the
            rule's scores over the neurons of all linears that read the input.
        column_draws: above 1, ``columns`` are drawn this many times, with probabilities proportional to their scores,
            instead of taken from the best. The support holds the entries of all draws, and training uses one draw after
            the other (:mod:`taskedge.forms.column_draws`).
        rank: rank of the low-rank modules of ``"spt"``.
        seed: seed of the rule, of the column score ``random`` and of drawn columns.
        on_batch: progress callback; receives the number of finished calibration batches.
        statistics: statistics of these linears, measured earlier or on other machines, instead of ``batches``.
        avoid: entries that are not chosen, such as ``[delta.linears, support.linears]``: the next best take their
            place. Columns are ranked as without it.

    Returns:
        The support, on the CPU.

    Raises:
        BudgetError: the budget is not a share, selects nothing, exceeds what the linears can carry, or is given beside
            a rule or allocation that sets it. Or rows have too few entries beside those to avoid.
        InputError: a name is unknown, the model has no linears, or batches are missing or unusable.
    """
    score_rule = RULES[rule]
    layers = candidates(model, linears) if depth is None else candidates_within(model, depth, linears)
    model_parameters = num_weights(model)
    refuse_clashes(
        rule,
        allocation,
        budget=budget,
        per_neuron=per_neuron,
        columns=columns,
        max_columns=max_columns,
        max_rows=max_rows,
        column_score=column_score,
    )
    if avoid and score_rule.choose is not None:
        raise BudgetError(f"the rule {rule!r} may train whole matrices and cannot avoid entries: give another rule")
    if column_draws < 1:
        raise BudgetError(f"{column_draws} draws of columns train nothing: give 1 or more")
    if column_draws > 1 and columns is None:
        raise BudgetError(f"{column_draws} draws of columns need their number: give columns as well")
    limit = max_columns if columns is None else columns
    shapes = {
        name: (usable_rows(layer.shape[0], max_rows), _usable_columns(layer.shape[1], limit))
        for name, layer in layers.items()
    }
    if columns is not None:
        if batches is None and statistics is None:
            raise InputError(
                f"{columns} columns are chosen for each input, and only data shows which linears share one: give a few "
                "calibration batches"
            )
        if per_neuron is None:
            per_neuron = min(columns, max(width for _, width in shapes.values()))
    score_of_columns = None if limit is None else COLUMN_SCORES[column_score or DEFAULT_COLUMN_SCORE]
    if rank < 1:
        raise InputError(f"{rank} is not a rank of a low-rank module: give 1 or more")
    if allocation is None:
        allocation = DEFAULT_ALLOCATION
    whole_block = (
        f"{max_rows} rows x {max_columns} columns"
        if None not in (max_rows, max_columns) and allocation == BLOCK
        else ""
    )
    num_entries, budget_text = _entries_of_budget(allocation, budget, per_neuron, model_parameters, shapes, whole_block)
    vectors = trainable_vectors(model, layers, all_norms=linears is None, depth=depth) if score_rule.choose else {}

    if statistics is not None:
        measured = Statistics(statistics, idle=[name for name, linear in statistics.items() if _is_idle(linear)])
    else:
        measured = _measure(model, layers, batches, score_rule, score_of_columns, on_batch, vectors)
    with measured:
        _check_number_of_batches(score_rule, measured.num_batches)
        if measured.idle:  # an entry there would never get a gradient
            layers = {name: layer for name, layer in layers.items() if name not in measured.idle}
            shapes = {name: shape for name, shape in shapes.items() if name in layers}
            if not layers:
                raise InputError(f"none of the {len(measured.idle)} linears to choose from ran on the calibration data")
            num_entries, budget_text = _entries_of_budget(
                allocation, budget, per_neuron, model_parameters, shapes, whole_block
            )
        scores = _scores(score_rule, layers, measured, seed)
        avoided = avoided_entries(model, {name: layer.shape for name, layer in layers.items()}, avoid)
        draws: list[dict[str, Tensor]] = []
        if score_of_columns is not None:
            assert limit is not None
            if column_draws > 1:
                draws = draw_columns(score_of_columns, layers, measured, scores, limit, column_draws, seed)
            else:
                draws = [choose_columns(score_of_columns, layers, measured, scores, limit, seed)]
        if score_rule.choose is None:
            masked = [without(in_columns(scores, draw), avoided) for draw in draws] or [without(scores, avoided)]
            rows = None
            if max_rows is not None:  # the same in all draws
                usable = masked[0] if len(masked) == 1 else without(in_columns(scores, _union(draws)), avoided)
                rows = choose_rows(list(shapes), usable, max_rows)
                masked = [in_rows(each, rows) for each in masked]
            found = [allocate(allocation, shapes, each, num_entries) for each in masked]
            if rows is not None:
                widths = {name: layer.shape[1] for name, layer in layers.items()}
                found = [in_whole_weights(entries, rows, widths) for entries in found]
            for chosen in found:
                refuse_avoided(chosen, avoided, map(len, chosen.values()))
            selected = SelectedParameters(found[0] if len(found) == 1 else _union(found))
        else:
            selected = score_rule.choose(shapes, scores, measured.vectors, num_entries, rank)

    settings: dict[str, Any] = {"seed": seed} | ({"avoided": sum(map(len, avoided.values()))} if avoid else {})
    if depth is not None:
        settings["depth"] = depth
    if columns is not None:
        settings["columns"] = columns
    if max_columns is not None:
        settings["max_columns"] = max_columns
    if max_rows is not None:
        settings["max_rows"] = max_rows
    if score_of_columns is not None:
        settings["column_score"] = score_of_columns.name
    if column_draws > 1:
        settings["column_draws"] = column_draws
        settings["drawn_columns"] = {
            name: [draw[name].tolist() for draw in draws] for name, flat in selected.entries.items() if len(flat)
        }
        budget_text += f", {column_draws} draws"
    if score_rule.choose is not None:
        settings["rank"] = rank
    if measured.idle:
        settings["never_ran"] = list(measured.idle)
    linear_supports = {
        name: LayerSupport.from_flat(layers[name].shape, flat, measured[name].shared_input, measured[name].input_rms)
        for name, flat in selected.entries.items()
        if len(flat)
    }
    if score_rule.choose is None:  # others spread the budget over more than entries
        settings |= neuron_share_of(linear_supports, sum(layer.shape[0] for layer in layers.values()))
    return Support(
        linears=linear_supports,
        model_parameters=model_parameters,
        low_rank=selected.low_rank,
        num_low_rank_parameters=sum(r * sum(layers[name].shape) for name, r in selected.low_rank.items()),
        full_parameters=selected.full_parameters,
        num_full_parameters=sum(vectors[name].numel() for name in selected.full_parameters),
        rule=rule,
        allocation=rule if score_rule.choose else COLUMNS if columns is not None else allocation,
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
    "columns": "the number of columns",
    "max_columns": "the maximum number of columns",
    "max_rows": "the maximum number of rows",
    "column_score": "the column score",
    "allocation": "the allocation",
}
"""Settings by their names in messages, which users of the command line and of Python read."""


def refuse_clashes(rule: str, allocation: str | None, **settings: object) -> None:
    """Raise BudgetError if a setting is given (not None) that the rule or the allocation determines itself."""
    if RULES[rule].choose is not None:
        owner = f"the rule {rule!r} spreads its budget itself"
        determined: tuple[str, ...] = ("per_neuron", "columns", "max_columns", "max_rows", "column_score", "allocation")
        settings = settings | {"allocation": allocation}
    elif settings.get("columns") is not None:
        owner = f"the number of columns ({settings['columns']!r}) is itself the budget"
        determined = ("budget", "max_columns", "allocation")
        settings = settings | {"allocation": allocation}
    elif isinstance(ALLOCATIONS[allocation or DEFAULT_ALLOCATION], PatternAllocation):
        owner = f"the allocation {allocation!r} is itself the budget"
        determined = ("budget", "per_neuron", "max_columns", "max_rows", "column_score")
    elif allocation == BLOCK and settings.get("per_neuron") is not None:
        owner = f"the allocation {allocation!r} trains few neurons, with all columns they may use"
        determined = ("per_neuron",)
    elif settings.get("max_columns") is None:
        owner = "columns are ranked only if their number is limited"
        determined = ("column_score",)
    else:
        return
    clashes = [f"{_NOUNS[name]} ({settings[name]!r})" for name in determined if settings.get(name) is not None]
    if clashes:
        raise BudgetError(f"{owner}: leave out {' and '.join(clashes)}")


def _entries_of_budget(
    allocation: str,
    budget: str | float | None,
    per_neuron: int | None,
    model_parameters: int,
    shapes: Shapes,
    whole_block: str,
) -> tuple[int, str]:
    """Return (number of entries, the budget as text); ``whole_block`` describes the block that replaces a budget."""
    if whole_block and budget is None:
        return sum(rows * columns for rows, columns in shapes.values()), whole_block
    if allocation == BLOCK and budget is None:
        raise BudgetError(
            "the size of a block is not given: give the maximum number of rows and that of columns, or a budget (a "
            "share such as '0.1%')"
        )
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
    column_score: ColumnScore | None,
    on_batch: Callable[[int], None] | None,
    vectors: dict[str, nn.Parameter],
) -> Statistics:
    needs_of_columns = () if column_score is None else column_score.needs
    if rule.needs_dense_run:
        raise InputError(
            f"the rule {rule.name!r} looks at what a dense run changed: give the statistics of one, from "
            "taskedge.training.dense_run.measure_changes, instead of batches"
        )
    if batches is not None:
        return measure(model, layers, batches, {*rule.needs, *needs_of_columns, INPUTS}, on_batch, vectors)
    if rule.needs:
        raise InputError(f"the rule {rule.name!r} looks at data: give a few calibration batches")
    if column_score is not None and needs_of_columns:
        raise InputError(f"the column score {column_score.name!r} looks at data: give a few calibration batches")
    return Statistics({name: LinearStatistics(shared_input=name) for name in layers})


def _check_number_of_batches(rule: Rule, num_batches: int | None) -> None:
    if num_batches is not None and num_batches < rule.min_batches:
        raise InputError(
            f"the rule {rule.name!r} compares the gradients of {rule.min_batches} or more batches, and there is "
            f"{num_batches}: give more and smaller ones"
        )


def _scores(rule: Rule, layers: dict[str, Linear], measured: Statistics, seed: int) -> Scores:
    """Return a function that computes the scores of one linear, equal at every call."""
    generator = torch.Generator().manual_seed(seed)
    states: dict[str, Tensor] = {}  # state of the generator at the first call for each linear

    def scores(name: str) -> Tensor:
        generator.set_state(states.setdefault(name, generator.get_state()))
        score = rule.score(layers[name].weight, measured[name], generator)
        return score.clamp_min(torch.finfo(score.dtype).min)  # -inf means: may not be chosen

    return scores


def _union(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the entries, flat and ascending, that any of several allocations chose."""
    return {name: torch.unique(torch.cat([entries[name] for entries in found])) for name in found[0]}


def _is_idle(linear: LinearStatistics) -> bool:
    """Return whether a linear ran on no token, if that was measured."""
    return linear.input_squares is not None and not linear.tokens


def _usable_columns(columns: int, max_columns: int | None) -> int:
    if max_columns is None:
        return columns
    refuse_no_columns(max_columns)
    return min(columns, max_columns)
