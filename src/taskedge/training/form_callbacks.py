"""Supports of forms that select nothing, and callbacks of forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from taskedge.delta.delta import CLOSED_LAYERS, Delta
from taskedge.forms.install_prompt import prompt_support
from taskedge.forms.install_taps import taps_support
from taskedge.selection.support import Support
from taskedge.training.callbacks import Callback
from taskedge.training.dash_callback import DashStart
from taskedge.training.layer_gates import LayerGatePenalty
from taskedge.training.lora import lora_support
from taskedge.training.selection_settings import TAPS_FORMS
from taskedge.training.tune_config import TuneConfig


def form_support(model: nn.Module, config: TuneConfig) -> Support | None:
    """Return the support of a form that takes every layer; None if the form trains a selection of entries."""
    if config.form in ("lora", "filtered"):
        return replace(lora_support(model, config.rank, config.depth), rule=config.form)
    if config.form == "prompt":
        return prompt_support(model)
    return taps_support(model, config.depth) if config.form == "taps" else None


def open_share(delta: Delta, support: Support) -> float:
    """Return the share of the base's parameters that was trained: with gates on layers, of the open ones."""
    has_gates = CLOSED_LAYERS in delta.provenance.training
    return delta.num_entries / support.model_parameters if has_gates else support.share


def form_callbacks(config: TuneConfig, log: Callable[[str], None]) -> list[Callback]:
    """Return the callbacks that the form of a run needs."""
    callbacks: list[Callback] = []
    if config.dash:
        callbacks.append(DashStart(config.dash_start, log))
    if config.form in TAPS_FORMS:
        callbacks.append(LayerGatePenalty(config.layer_gate_penalty, config.gate_warmup, log))
    return callbacks
