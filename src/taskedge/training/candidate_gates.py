"""Diff pruning on a device: gates on a few candidates of each neuron, of which the best stay.

A rule chooses K candidates of each neuron. Their offsets train behind gates with the kernels of the sparse form, so
memory is that of K entries a neuron, not eleven copies of the model. The candidates with the largest offsets then stay,
equally many of each neuron, and a run can start from their changes. With steps scaled by the input, an offset measures
a change by its effect on the output, so offsets of one neuron can be compared.

Source: this project; the gates are those of diff pruning (arXiv 2012.07463).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskedge.errors import InputError
from taskedge.forms import STEP_EXPONENT
from taskedge.forms.install import fuse, install
from taskedge.forms.sparse import FreeEntries, sparse_layers
from taskedge.selection.support import LayerSupport, Support, neuron_share_of
from taskedge.training.diff_pruning import FINAL, GATES_MODULE, NAME, train_gates
from taskedge.training.gates import GateConfig, Gates
from taskedge.training.trainer_config import TrainerConfig


def find_among_candidates(
    model: nn.Module,
    candidates: Support,
    rows: Sequence[Any],
    collate: Callable[[list[Any]], Any],
    config: TrainerConfig,
    gates: GateConfig,
    *,
    per_neuron: int = 1,
    head: Sequence[str],
    folder: Path,
    step: str = "activation",
    step_exponent: float = STEP_EXPONENT,
    resume: bool = False,
    progress: bool = True,
    log: Callable[[str], None] = lambda _: None,
) -> Support:
    """Train the candidates behind gates, and return those with the largest changes, from which training can start.

    The model has its values again afterwards, the head included: the support brings those of the head.

    Args:
        model: the base, with a head for the task.
        candidates: several entries of each neuron.
        rows, collate: training data, as for :func:`taskedge.training.trainer.train`.
        config: of this phase; ``lr`` is the rate of the offsets, which falls to 0, and ``clip`` is not used.
        gates: settings of the gates; a group is a linear.
        per_neuron: number of candidates of each neuron that stay.
        head: names of the parameters that train in full.
        folder: for checkpoints.
        step, step_exponent: as for :func:`taskedge.install`.
        resume: continue from the newest checkpoint, to the same bits.
        progress: show a progress line.
        log: called with status lines.

    Returns:
        The support. A neuron has fewer entries where the gates of its candidates are closed.

    Raises:
        InputError: the candidates are not entries alone, or the model cannot train them.
        TrainingDiverged: the loss is not a finite number.
    """
    if candidates.low_rank or candidates.full_parameters or not candidates.linears:
        raise InputError("gates choose among entries: select candidates by a rule that gives entries only")
    log(f"diff pruning: gates on {candidates.num_entries:,} candidates of {len(candidates.linears)} linears")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in set(head)}
    plain = replace(candidates, start={}, start_full={})
    install(model, plain, trainable=head, step=step, step_exponent=step_exponent)
    full = {name: parameter for name, parameter in model.named_parameters() if name in before}
    entries = {name: cast(FreeEntries, layer.entries) for name, layer in sparse_layers(model).items()}
    gated = Gates({name: each.offsets for name, each in entries.items()}, gates, config.seed)
    model.add_module(GATES_MODULE, gated)
    try:
        train_gates(model, rows, collate, config, folder, gated, full, resume=resume, progress=progress)
        expected = gated.expected_nonzero() / candidates.model_parameters
        gated.write(FINAL)
        offsets = {name: each.current_offsets().detach() for name, each in entries.items()}
        kept = {name: best_of_neurons(entries[name].rows, offsets[name].abs(), per_neuron) for name in entries}
        start = {
            name: _changes(entries[name], offsets[name])[index].cpu() for name, index in kept.items() if len(index)
        }
        start_full = {name: parameter.detach().cpu().clone() for name, parameter in full.items()}
    finally:
        delattr(model, GATES_MODULE)
        gated.restore()
        with torch.no_grad():
            for name, parameter in full.items():
                parameter.copy_(before[name])
                parameter.grad = None
        fuse(model)
    linears = {name: _part(candidates.linears[name], kept[name].cpu()) for name in start}
    missing = sum(per_neuron * linear.shape[0] for linear in candidates.linears.values())
    missing -= sum(len(linear) for linear in linears.values())
    if missing:
        log(f"diff pruning: {missing:,} entries fewer than {per_neuron} a neuron, since the gates of all others closed")
    settings = {
        "seed": config.seed, "draw": FINAL, "epochs": config.epochs, "lr": config.lr, "gate_lr": gates.gate_lr,
        "penalty": gates.penalty, "structured": gates.structured, "expected_share": expected,
        "candidates": candidates.budget, "candidates_by": candidates.rule,
        **neuron_share_of(linears, sum(linear.shape[0] for linear in candidates.linears.values())),
    }  # fmt: skip
    return replace(
        candidates,
        linears=linears,
        rule=NAME,
        allocation="per_neuron",
        budget=f"{per_neuron} per neuron",
        settings=settings,
        start=start,
        start_full=start_full,
    )


def best_of_neurons(rows: Tensor, sizes: Tensor, count: int) -> Tensor:
    """Return the indices, ascending, of the ``count`` largest sizes of each row; none of size 0, ties to the first.

    Args:
        rows: int64 [n].
        sizes: [n], 0 or more.
        count: number for each row.
    """
    order = torch.argsort(sizes, descending=True, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    sorted_rows = rows[order].contiguous()
    place = torch.arange(len(rows), device=rows.device) - torch.searchsorted(sorted_rows, sorted_rows)
    return order[(place < count) & (sizes[order] > 0)].sort().values


def _changes(entries: FreeEntries, offsets: Tensor) -> Tensor:
    return offsets if entries.step is None else offsets * entries.step


def _part(linear: LayerSupport, kept: Tensor) -> LayerSupport:
    return LayerSupport.from_flat(linear.shape, linear.flat[kept], linear.shared_input, linear.input_rms)
