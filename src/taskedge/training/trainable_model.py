"""A base model with something installed that trains, whichever the form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.delta.delta import Delta
from taskedge.delta.extract import extract
from taskedge.forms.column_draws import number_of_draws, use_draw
from taskedge.forms.dash import add_directions
from taskedge.forms.filtered import add_filters, remove_filtered
from taskedge.forms.form_registry import FORMS
from taskedge.forms.gated_entries import set_gates
from taskedge.forms.install import fuse, install
from taskedge.forms.install_prompt import install_prompt
from taskedge.forms.install_taps import install_taps
from taskedge.forms.prompt import remove_prompt
from taskedge.forms.sparse_plus_low_rank import remove_products, set_product_rate
from taskedge.selection.support import Support
from taskedge.training.lora import PeftLora
from taskedge.training.memory.mezo import MEZO_WARNING
from taskedge.training.selection_settings import FORMS_OF_ENTRIES
from taskedge.training.tasks import Log
from taskedge.training.tune_config import TuneConfig


class TrainableModel(Protocol):
    """A base model with something installed that trains."""

    @property
    def model(self) -> nn.Module:
        """The model."""
        ...

    def extract(self) -> Delta:
        """Return what it has learned."""
        ...

    def fuse(self) -> nn.Module:
        """Restore plain layers. Their weights are unspecified afterwards; apply a delta before use."""
        ...


@dataclass(frozen=True)
class InstalledModel:
    """A model with a support installed by :func:`taskedge.install`: a :class:`TrainableModel`."""

    model: nn.Module

    def extract(self) -> Delta:
        """Return what it has learned."""
        return extract(self.model)

    def fuse(self) -> nn.Module:
        """Restore plain layers."""
        remove_filtered(self.model)  # cannot be fused, and a delta follows
        remove_products(self.model)  # the delta that follows adds them, to the weights of the base
        remove_prompt(self.model)
        return fuse(self.model)


def install_support(
    model: nn.Module, support: Support, config: TuneConfig, full_names: Sequence[str], log: Log
) -> TrainableModel:
    """Install a support in a model, in the configured form.

    Args:
        model: the base's model.
        support: the entries and low-rank products to train.
        config: settings of the run.
        full_names: names of the parameters that are trained in full.
        log: called with status lines.
    """
    if config.optimizer == "mezo":
        log(MEZO_WARNING)
    if config.weight_storage == "mmap":
        set_weight_storage(model, config.weight_storage, log)
    if config.form == "lora" and not config.dash:
        return PeftLora(model, support, full_names, config.alpha, config.seed)
    if config.form == "taps":
        install_taps(
            model,
            support,
            trainable=full_names,
            threshold=config.gate_threshold,
            rate=config.gate_lr,
            norms=config.norms,
        )
        return InstalledModel(model)
    if config.form == "prompt":
        return InstalledModel(install_prompt(model, support, trainable=full_names))
    form = "sparse" if config.dash or config.form == "filtered" else config.form
    install(
        model,
        support,
        trainable=full_names,
        step=config.step if config.form in FORMS_OF_ENTRIES else "plain",
        step_exponent=config.step_exponent,
        form=form,
        rank=config.rank if FORMS[form].factored else None,
        alpha=config.alpha,
        seed=config.seed,
    )
    if config.dash:
        add_directions(model, config.directions)
    if config.form == "filtered":
        add_filters(model, config.filter, config.filter_rank, config.seed)
    if number_of_draws(model) > 1:
        use_draw(model, 0)  # what is measured before training has the memory of one draw
    set_product_rate(model, config.product_rate)
    if config.form == "sparse_taps":
        set_gates(model, config.gate_threshold, config.gate_lr)
    return InstalledModel(model)
