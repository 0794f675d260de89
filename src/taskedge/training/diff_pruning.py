"""Diff pruning: learn which weights to train, by gates that a penalty closes; then keep exactly the largest changes.

Three phases: gates and changes train together on all candidate weights, beside the head; exactly as many entries as the
budget names, those with the largest changes, are the support; a run of the sparse form trains them from there. This
module has the first two. The third is any run that installs the support, which brings its start.

Source: diff pruning (arXiv 2012.07463) and its published code. This project: gates only on weights that can carry
entries, one draw for each optimizer step, an exact top-k without the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from taskedge.backbone.candidates import candidates, candidates_within
from taskedge.backbone.experts import ExpertLinear
from taskedge.backbone.layers import Linear
from taskedge.errors import BudgetError, InputError
from taskedge.forms.master_weights import add_master_weights, remove_master_weights
from taskedge.selection.allocations import allocate
from taskedge.selection.select import parse_share
from taskedge.selection.statistics import INPUTS, measure
from taskedge.selection.support import LayerSupport, Support, neuron_share_of
from taskedge.training.callbacks import Callback, TrainState
from taskedge.training.gates import PHASE_BYTES, GateConfig, Gates
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

NAME = "diff-pruning"
FINAL = "final"
"""Name of the draw that gives the changes to keep."""
GATES_MODULE = "taskedge_gates"
"""Name of the gates within the model while they train."""


@dataclass(frozen=True)
class GatedWeights:
    """The weights of a model that gates can be put on.

    Attributes:
        layers: linears with these weights, by name.
        parameters: the parameters, by name.
        budget: entries to choose.
    """

    layers: dict[str, Linear]
    parameters: dict[str, nn.Parameter]
    budget: int

    @property
    def num_weights(self) -> int:
        """Number of gated weights."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def memory_bytes(self) -> int:
        """Memory of the first phase for these weights: about eleven copies, without activations."""
        return sum(p.numel() * (3 * p.element_size() + PHASE_BYTES) for p in self.parameters.values())

    def __str__(self) -> str:
        return (
            f"gates on {self.num_weights:,} weights of {len(self.layers)} linears, of which {self.budget:,} are to "
            f"stay: eleven copies of these, {self.memory_bytes / 1e6:,.1f} MB, beside activations"
        )


def gated_weights(model: nn.Module, budget: str | float, depth: int | None = None) -> GatedWeights:
    """Return the weights that get gates, and the number of entries to keep.

    Args:
        model: the base.
        budget: share of all parameters of the model.
        depth: only linears in this many blocks nearest the output.

    Raises:
        BudgetError: the budget selects nothing, or more than there are gates.
        InputError: no linear can carry entries; its weight is read-only.
    """
    usable = candidates(model) if depth is None else candidates_within(model, depth)
    layers = {name: layer for name, layer in usable.items() if not isinstance(layer.module, ExpertLinear)}
    if not layers:
        raise InputError("all linears that can carry entries are experts, which get no gates: select by a rule")
    for name, layer in layers.items():
        if layer.is_read_only:
            raise InputError(f"the weight of {name!r} is read-only, and gates change it: load the base as 'resident'")
    every = dict(model.named_parameters())
    parameters = {layer.parameter: every[layer.parameter] for layer in layers.values()}
    capacity = sum(parameter.numel() for parameter in parameters.values())
    count = round(parse_share(budget) * sum(parameter.numel() for parameter in every.values()))
    if not 1 <= count <= capacity:
        raise BudgetError(
            f"a budget of {count:,} entries cannot be chosen from {capacity:,} gated weights: give "
            f"{'a larger' if count < 1 else 'a smaller'} share"
        )
    return GatedWeights(layers, parameters, count)


def find_by_gates(
    model: nn.Module,
    rows: Sequence[Any],
    collate: Callable[[list[Any]], Any],
    calibration: Iterable[Any],
    config: TrainerConfig,
    gates: GateConfig,
    *,
    budget: str | float,
    head: Sequence[str],
    folder: Path,
    depth: int | None = None,
    resume: bool = False,
    progress: bool = True,
    log: Callable[[str], None] = lambda _: None,
) -> Support:
    """Train gates, and return the entries with the largest changes as a support that starts from these.

    The model has its values again afterwards, the head included: the support brings those of the head.

    Args:
        model: the base, with a head for the task.
        rows, collate: training data, as for :func:`taskedge.training.trainer.train`.
        calibration: batches on which the input norms are measured.
        config: of the first phase; ``lr`` is the rate of the changes, which falls to 0, and ``clip`` is not used.
        gates: settings of the gates.
        budget: share of all parameters of the model.
        head: names of the parameters that train in full.
        folder: for checkpoints.
        depth: see :func:`gated_weights`.
        resume: continue from the newest checkpoint, to the same bits.
        progress: show a progress line.
        log: called with status lines.

    Returns:
        The support. It has fewer entries than the budget if fewer changes are not 0, and none if all gates are closed.

    Raises:
        BudgetError, InputError: see :func:`gated_weights`.
        TrainingDiverged: the loss is not a finite number.
    """
    weights = gated_weights(model, budget, depth)
    log(f"diff pruning: {weights}")
    required_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model_parameters = sum(parameter.numel() for parameter in model.parameters())
    add_master_weights(model, head)
    full = {name: parameter for name, parameter in model.named_parameters() if name in set(head)}
    before = {name: parameter.detach().clone() for name, parameter in full.items()}
    trained = {id(parameter) for parameter in (*weights.parameters.values(), *full.values())}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    gated = Gates(weights.parameters, gates, config.seed)
    model.add_module(GATES_MODULE, gated)
    try:
        train_gates(model, rows, collate, config, folder, gated, full, resume=resume, progress=progress)
        delattr(model, GATES_MODULE)
        expected = gated.expected_nonzero() / model_parameters
        flat, start = _largest(gated, weights, log)
        start_full = {name: parameter.detach().cpu().clone() for name, parameter in full.items()}
    finally:
        gated.restore()
        with torch.no_grad():
            for name, parameter in full.items():
                parameter.copy_(before[name])
                parameter.grad = None
        if hasattr(model, GATES_MODULE):
            delattr(model, GATES_MODULE)
        remove_master_weights(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required_grad[name])
    with measure(model, weights.layers, calibration, {INPUTS}) as statistics:
        linears = {
            name: LayerSupport.from_flat(
                weights.layers[name].shape, entries, statistics[name].shared_input, statistics[name].input_rms
            )
            for name, entries in flat.items()
        }
    return Support(
        linears=linears,
        model_parameters=model_parameters,
        rule=NAME,
        allocation="global",
        budget=budget if isinstance(budget, str) else f"{budget:.6g}",
        settings=_settings(config, gates, depth)
        | {"expected_share": expected}
        | neuron_share_of(linears, sum(layer.shape[0] for layer in weights.layers.values())),
        start=start,
        start_full=start_full,
    )


def train_gates(
    model: nn.Module, rows: Sequence[Any], collate: Callable[[list[Any]], Any], config: TrainerConfig, folder: Path,
    gated: Gates, full: dict[str, nn.Parameter], *, resume: bool, progress: bool,
) -> None:  # fmt: skip
    """Train gates and their weights with the parameters of ``full``; clipping is apart, and there is no warm-up."""
    train(
        model,
        rows,
        collate,
        config.model_copy(update={"clip": 0.0, "weight_decay": 0.0, "warmup": 0.0}),
        folder,
        resume=resume,
        progress=progress,
        callbacks=[GateSteps(gated, list(full.values()))],
        optimizer=gate_optimizer(gated, full, config),
    )


class GateSteps(Callback):
    """Draws the gates of each step, and gives w and the gates their gradients, clipped apart."""

    def __init__(self, gated: Gates, head: Sequence[nn.Parameter]) -> None:
        self._gated = gated
        self._values = [*gated.w, *head]
        self._gates = [*gated.alpha, *gated.group_alpha]

    def on_step_begin(self, state: TrainState) -> None:
        """Write the weights of the step's draw."""
        self._gated.write(state.step)

    def on_gradients(self, state: TrainState) -> None:
        """Compute gradients and clip them; the rate of the gates stays constant."""
        self._gated.backward(state.step)
        if self._gated.config.clip:
            for parameters in (self._values, self._gates):
                clip_grad_norm_(parameters, self._gated.config.clip)
        for group in state.optimizer.param_groups:
            if group["constant"]:
                group["lr"] = group["initial_lr"]


def gate_optimizer(gated: Gates, full: dict[str, nn.Parameter], config: TrainerConfig) -> torch.optim.Optimizer:
    """Return AdamW without decay: changes, head and gates each have a rate of their own."""
    head_lr = config.lr if config.head_lr is None else config.head_lr
    rates = [([*gated.w], config.lr, False), ([*full.values()], head_lr, False)]
    rates.append(([*gated.alpha, *gated.group_alpha], gated.config.gate_lr, True))
    groups = [
        {"params": parameters, "lr": lr, "initial_lr": lr, "weight_decay": 0.0, "constant": constant}
        for parameters, lr, constant in rates
        if parameters
    ]
    return torch.optim.AdamW(groups, fused=True)


def _largest(
    gated: Gates, weights: GatedWeights, log: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the entries of the largest changes, int64 [n] by linear, and these changes, float32 [n]."""
    gated.show_changes(FINAL)
    layers = weights.layers
    present = sum(int(layer.weight.count_nonzero()) for layer in layers.values())
    count = min(weights.budget, present)
    if count < weights.budget:
        log(
            f"diff pruning: only {present:,} of the {weights.budget:,} entries of the budget changed, the gates of all "
            "others are closed: give a smaller --gate-penalty, or --gate-tries 5 to search one, for more"
        )
    if not count:
        return {}, {}
    shapes = {name: layer.shape for name, layer in layers.items()}
    flat = allocate("global", shapes, lambda name: layers[name].weight.abs(), count)
    start = {
        name: layers[name].read(entries // shapes[name][1], entries % shapes[name][1]).float().cpu()
        for name, entries in flat.items()
    }
    return flat, start


def _settings(config: TrainerConfig, gates: GateConfig, depth: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "seed": config.seed,
        "draw": FINAL,
        "epochs": config.epochs,
        "lr": config.lr,
        "gate_lr": gates.gate_lr,
        "penalty": gates.penalty,
        "structured": gates.structured,
    }
    if gates.structured:
        settings["group_penalty"] = gates.group_penalty
    return settings if depth is None else settings | {"depth": depth}
