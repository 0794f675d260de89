"""Supports that a training run of its own finds, and what finding costs.

A support is found once for each task and seed, at rates that do not change, and serves all trials and shares of its
method: the largest share is found, and smaller ones are its largest changes. The penalty of gates is searched for the
largest share on the first seed, and the other seeds have the same. A support is kept in the folder of temporary files,
so that a sweep that was killed does not find it again.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

import taskedge as te
from benchmarks.accuracy.methods import Facts, Prepare, finding_cost
from benchmarks.record import machine
from taskedge.backbone.candidates import candidates, head_parameters
from taskedge.selection.select import parse_share
from taskedge.selection.statistics import INPUTS, measure
from taskedge.selection.support import LayerSupport, Support, load_support, save_support
from taskedge.training.candidate_gates import find_among_candidates
from taskedge.training.data.text_data import Row
from taskedge.training.diff_pruning import find_by_gates
from taskedge.training.gate_search import search_penalty
from taskedge.training.gates import GateConfig
from taskedge.training.trainer import train
from taskedge.training.trainer_config import HEAD_LEARNING_RATE, TrainerConfig

OWN_ENTRIES = 20_736
"""Entries of ``taskedge`` with one per neuron, which the supports without a stated share have as well."""
LARGEST_SHARE = "0.5%"
FIRST_SEED = 0
TRIES = 5
"""Penalties that are tried on the first seed."""
CANDIDATE_LR = 3e-2
"""Peak rate of offsets behind gates: the start of the search for entries."""
FINDING_LR = 1e-4
"""Peak rate of the weights while a support is found: the default of ``--support-lr`` and ``--change-lr``."""


@dataclass(frozen=True)
class TrainingRows:
    """What a support is found on.

    Attributes:
        task: its name, which keeps supports of tasks apart.
        rows: training rows.
        collate: makes a batch of some of them.
        epochs: passes over the rows: those of the short budget.
        batch_size: rows in a batch.
    """

    task: str
    rows: Sequence[Row]
    collate: Callable[[list[Row]], Any]
    epochs: float
    batch_size: int

    def config(self, seed: int) -> TrainerConfig:
        """Return the settings of the run that finds."""
        return TrainerConfig(
            epochs=self.epochs, lr=FINDING_LR, head_lr=HEAD_LEARNING_RATE, batch_size=self.batch_size, seed=seed
        )


Find = Callable[[nn.Module, list[Any], TrainingRows, int, Support | None], Support]
"""Takes the model, calibration batches, rows, the seed and the support of the first seed (None there), and returns a
support that starts from its changes."""


@dataclass(frozen=True)
class LearnedSupport:
    """A method whose support a training run finds; :meth:`on` makes it a plain one.

    Attributes:
        find: finds the largest share.
        name: of the way to find, under which supports are kept.
        share: of the model's parameters; None for as many entries as ``taskedge``.
        rewound: whether training starts from the base instead of the values that were found.
    """

    find: Find
    name: str
    share: str | None = None
    rewound: bool = False

    def on(self, training: TrainingRows) -> Prepare:
        """Return the method on some rows."""

        def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
            support, facts = self._found(model, batches, training, seed)
            count = OWN_ENTRIES if self.share is None else round(parse_share(self.share) * support.model_parameters)
            support = largest(support, count)
            facts |= {"entries": support.parameters, "stored_columns": support.stored_columns}
            facts["linears"] = len(support.linears)
            if self.rewound:
                support = replace(support, start={}, start_full={})
            return te.install(model, support, step="activation", seed=seed), facts

        return prepare

    def _found(self, model: nn.Module, batches: list[Any], training: TrainingRows, seed: int) -> tuple[Support, Facts]:
        device = machine(str(next(model.parameters()).device))
        path, about = self._files(training, seed, device)
        if about.exists():
            return load_support(path), json.loads(about.read_text())
        first, about_first = self._files(training, FIRST_SEED, device)
        facts: Facts = {}
        with finding_cost(facts, model):
            support = self.find(model, batches, training, seed, load_support(first) if about_first.exists() else None)
        facts |= {name: support.settings[name] for name in ("expected_share", "penalty") if name in support.settings}
        save_support(support, path)
        about.write_text(json.dumps(facts))  # last: both are there, or the support is found again
        return support, facts

    def _files(self, training: TrainingRows, seed: int, device: str) -> tuple[Path, Path]:
        key = [self.name, training.task, len(training.rows), str(training.config(seed)), device]
        stem = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / "taskedge-found-supports"
        folder.mkdir(exist_ok=True)
        return folder / f"{stem}.safetensors", folder / f"{stem}.json"


def largest(support: Support, count: int) -> Support:
    """Return the support of the ``count`` largest changes; ties go to the earlier linear and entry.

    Args:
        support: has a start for every entry.
        count: number of entries; a support with fewer is returned unchanged.
    """
    if support.num_entries <= count:
        return support
    sizes = torch.cat([support.start[name].abs() for name in support.linears])
    keep = torch.zeros(len(sizes), dtype=torch.bool)
    keep[torch.sort(sizes, descending=True, stable=True).indices[:count]] = True
    linears: dict[str, LayerSupport] = {}
    start = {}
    for (name, linear), kept in zip(
        support.linears.items(), keep.split([len(linear) for linear in support.linears.values()]), strict=True
    ):
        if kept.any():
            flat = linear.rows[kept] * linear.shape[1] + linear.columns[kept]
            linears[name] = LayerSupport.from_flat(linear.shape, flat, linear.shared_input, linear.input_rms)
            start[name] = support.start[name][kept]
    return replace(support, linears=linears, start=start)


def by_gates(gates: GateConfig, tries: int = TRIES) -> Find:
    """Diff pruning for the largest share. ``tries``: penalties on the first seed."""

    def find(model: nn.Module, batches: list[Any], training: TrainingRows, seed: int, first: Support | None) -> Support:
        budget = parse_share(LARGEST_SHARE)
        own = gates if first is None else replace(gates, penalty=first.settings["penalty"])

        def at(config: GateConfig, folder: Path) -> Support:
            return find_by_gates(
                model, training.rows, training.collate, batches, training.config(seed), config,
                budget=budget, head=head_parameters(model), folder=folder, progress=False, log=print,
            )  # fmt: skip

        with tempfile.TemporaryDirectory() as folder:
            return search_penalty(at, own, budget, 1 if first else tries, Path(folder), print)

    return find


def by_dense_run(
    model: nn.Module, batches: list[Any], training: TrainingRows, seed: int, first: Support | None = None
) -> Support:
    """The largest changes of all linears in a run that trains them whole, of a copy of the model."""
    tuned, layers, head = copy.deepcopy(model), candidates(model), head_parameters(model)
    names = [*(layer.parameter for layer in layers.values()), *head]
    te.install(tuned, Support({}, model_parameters=0, full_parameters=tuple(names)), trainable=[])
    with tempfile.TemporaryDirectory() as folder:
        train(
            tuned, training.rows, training.collate, training.config(seed), Path(folder), progress=False, head=head
        )  # fmt: skip
    values = {name: parameter.detach() for name, parameter in tuned.named_parameters()}
    changes = {name: values[layer.parameter] - layer.weight for name, layer in layers.items()}
    with measure(model, layers, batches, {INPUTS}) as statistics:
        for name, change in changes.items():
            statistics[name].read_change = change.clone
        support = te.select(model, statistics=statistics, rule="change", budget=LARGEST_SHARE, allocation="global")
    start = {name: changes[name][linear.rows, linear.columns].cpu() for name, linear in support.linears.items()}
    return replace(support, start=start, start_full={name: values[name].cpu().clone() for name in head})


def among_candidates(rule: str, count: int, lr: float = CANDIDATE_LR) -> Find:
    """Gates on some candidates of each neuron, of which the best stays: what fits on a device."""

    def find(model: nn.Module, batches: list[Any], training: TrainingRows, seed: int, first: Support | None) -> Support:
        candidates = te.select(model, batches, rule=rule, per_neuron=count, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            return find_among_candidates(
                model, candidates, training.rows, training.collate,
                training.config(seed).model_copy(update={"lr": lr}), GateConfig(), head=head_parameters(model),
                folder=Path(folder), progress=False, log=print,
            )  # fmt: skip

    return find
