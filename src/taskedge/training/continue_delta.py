"""Training that continues from a delta file: its entries, its values and its head are where the run begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.delta.apply import base_difference
from taskedge.delta.delta import Delta
from taskedge.delta.file import load
from taskedge.errors import InputError
from taskedge.selection.statistics import measure
from taskedge.selection.support import LayerSupport, Support, neuron_share_of

_KEPT = ("steps", "rows", "kept_step", "from_delta")


def support_of_delta(
    path: Path,
    model: nn.Module,
    task: str,
    labels: Sequence[str],
    head: Sequence[str],
    batches: Iterable[Any],
    log: Callable[[str], object],
) -> Support:
    """Return a support with the entries of a delta that starts from its values and its head.

    Args:
        path: the delta file.
        model: the base, plain.
        task, labels: of the run. The delta must have the same.
        head: names of the parameters that the run trains in full. The delta must have the same.
        batches: calibration batches, on which the inputs are measured that scale the steps.
        log: called with a status line.

    Raises:
        InputError: the delta has another task, other classes or parameters, low-rank products or several heads, or was
            trained on another base.
        DeltaError: the file cannot be read.
    """
    delta = load(path)
    provenance = delta.provenance
    _check(delta, path, task, labels, head)
    if difference := base_difference(model, delta):
        raise InputError(f"{path}: the delta was trained on another base: {difference}: give its base with --model")
    layers = {name: layer for name, layer in linears(model).items() if name in delta.linears}
    statistics = measure(model, layers, batches)
    chosen, start = {}, {}
    for name, linear in delta.linears.items():
        measured = statistics[name]
        chosen[name] = LayerSupport(
            linear.shape, linear.rows, linear.columns, measured.shared_input, measured.input_rms
        )
        weight = layers[name].weight
        base = weight[linear.rows.to(weight.device), linear.columns.to(weight.device)].detach().float().cpu()
        start[name] = linear.values - base
    lineage = {
        "file": path.name,
        "digest": hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(),
        **{name: provenance.training[name] for name in _KEPT if name in provenance.training},
    }
    log(
        f"{path}: training continues from its {delta.num_entries:,} entries"
        + (f", after {lineage['steps']:,} steps on {lineage.get('rows', 0):,} rows" if "steps" in lineage else "")
    )
    return Support(
        linears=chosen,
        model_parameters=provenance.base_parameters,
        rule=provenance.rule,
        allocation=provenance.allocation,
        budget=provenance.budget,
        settings={"from_delta": lineage}
        | neuron_share_of(chosen, sum(layer.shape[0] for layer in candidates(model).values())),
        start=start,
        start_full={name: delta.full_parameters[name].clone() for name in delta.full_parameters},
    )


def _check(delta: Delta, path: Path, task: str, labels: Sequence[str], head: Sequence[str]) -> None:
    provenance = delta.provenance
    if delta.heads:
        raise InputError(f"{path}: a delta for several tasks: take one of them out with `taskedge split` first")
    if delta.low_rank or not delta.linears:
        raise InputError(f"{path}: training continues from entries, and this delta has low-rank products or no entries")
    if provenance.task != task:
        raise InputError(f"{path}: the delta is for {provenance.task or 'an unnamed task'}, and the data for {task}")
    if list(provenance.labels) != list(labels):
        raise InputError(
            f"{path}: the delta has the classes {list(provenance.labels)}, and the data {list(labels)}: its head "
            "cannot continue: train on data of the same classes, or start without --from-delta"
        )
    if set(head) != set(delta.full_parameters):
        other = sorted(set(head) ^ set(delta.full_parameters))[0]
        raise InputError(f"{path}: parameter {other!r} is trained in full by one of the delta and this run only")
