"""Forms of the comparison that need more than a support: draws of columns, LoRA-Dash, filters, gates on layers."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

import taskedge as te
from benchmarks.accuracy.methods import CALLBACKS, MEASURED, Facts, Prepare, sparse
from taskedge.backbone.layers import linears
from taskedge.forms.column_draws import use_draw
from taskedge.forms.dash import add_directions
from taskedge.forms.filtered import add_filters
from taskedge.forms.gated_entries import set_gates
from taskedge.forms.install_taps import install_taps, taps_support
from taskedge.forms.sparse import sparse_layers
from taskedge.forms.taps import GATE_LEARNING_RATE, GATE_THRESHOLD, layer_gates, taps_layers
from taskedge.training.callbacks import Callback, TrainState
from taskedge.training.dash_callback import DashStart
from taskedge.training.layer_gates import LayerGatePenalty
from taskedge.training.lora import lora_support
from taskedge.training.selection_settings import TAPS_PENALTY

GATE_WARMUP = 0.1
"""Share of the steps without the penalty on gates: the default of ``taskedge tune``."""
DASH_STEPS, DASH_SHARE = 100, 0.2
"""Optimizer steps before LoRA-Dash starts in its authors' code, and the largest share of a run that these may be."""


def draws(**options: Any) -> Prepare:
    """Columns that are drawn four times during training; a step has the memory of one draw."""
    every = sparse("taskedge", column_draws=4, **options)

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        model, facts = every(model, batches, seed)
        use_draw(model, 0)
        return model, facts

    return prepare


def dash(rank: int) -> Prepare:
    """LoRA-Dash on all encoder linears, with 8 directions and an update scaled by 2."""

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        support = lora_support(model, rank, None)
        te.install(model, support, alpha=2 * rank, seed=seed)
        add_directions(model, 8)
        entries = support.parameters + 8 * len(support.low_rank)
        return model, {"entries": entries, CALLBACKS: [_DashStart()]}

    return prepare


def filtered(rank: int, kind: str = "cosine") -> Prepare:
    """LoRA on all encoder linears with a filter of their outputs; the update is scaled by 2."""

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        te.install(model, lora_support(model, rank, None), alpha=2 * rank, seed=seed)
        add_filters(model, kind, rank, seed)
        products = [module for name, module in model.named_modules() if name.endswith(".product")]
        return model, {"entries": sum(p.numel() for product in products for p in product.parameters())}

    return prepare


def taps(penalty: float = TAPS_PENALTY) -> Prepare:
    """Whole layers behind gates; norms are the base's."""

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        support = taps_support(model)
        install_taps(model, support)
        return model, _gate_facts(support.parameters, penalty)

    return prepare


def sparse_taps(penalty: float = TAPS_PENALTY) -> Prepare:
    """The entries of ``taskedge`` behind a gate on each linear."""
    entries = sparse("taskedge", form="sparse_taps")

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        model, facts = entries(model, batches, seed)
        set_gates(model, GATE_THRESHOLD, GATE_LEARNING_RATE)
        return model, facts | _gate_facts(facts["entries"], penalty)

    return prepare


def _gate_facts(entries: int, penalty: float) -> Facts:
    callbacks = [LayerGatePenalty(penalty, GATE_WARMUP, _silent)]
    return {"entries": entries, CALLBACKS: callbacks, MEASURED: open_layers}


def open_layers(model: nn.Module) -> Facts:
    """Return which gates are open after training, in the order of the layers, and how many weights they let change."""
    gates, whole, sparse_ones, layers = layer_gates(model), taps_layers(model), sparse_layers(model), linears(model)
    entries = 0
    for name, gate in gates.items():
        if gate.is_open:
            entries += math.prod(layers[name].shape) if name in whole else len(sparse_ones[name].entries.rows)
    return {"entries": entries, "open_layers": "".join(str(int(gate.is_open)) for gate in gates.values())}


class _DashStart(Callback):
    """Starts LoRA-Dash after the published number of steps, or earlier in a short run."""

    def on_train_begin(self, state: TrainState) -> None:
        self._start = DashStart(min(DASH_STEPS, math.ceil(DASH_SHARE * state.max_steps)), _silent)

    def on_step_begin(self, state: TrainState) -> None:
        self._start.on_step_begin(state)


def _silent(line: str) -> None:
    """Print nothing: a run of the comparison has one line."""
