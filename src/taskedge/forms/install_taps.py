"""``install_taps``: train whole layers of a model behind gates, with norms that are shared or the task's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from torch import nn

from taskedge.backbone.candidates import candidates, candidates_within, unusable_linears
from taskedge.backbone.experts import ExpertLinear
from taskedge.backbone.layers import linears
from taskedge.errors import InputError, did_you_mean
from taskedge.forms.install import Installation, full_parameter_names, installation, set_installation
from taskedge.forms.master_weights import add_master_weights
from taskedge.forms.norms import fix_statistics, norm_parameters, norm_statistics
from taskedge.forms.taps import GATE_LEARNING_RATE, GATE_START, GATE_THRESHOLD, check_whole, make_taps
from taskedge.selection.support import Support

Model = TypeVar("Model", bound=nn.Module)

NORMS = ("shared", "task")
_WHOLE = "whole_layers"


def taps_support(model: nn.Module, depth: int | None = None, only: Sequence[str] | None = None) -> Support:
    """Return a support in which the whole weight of every layer that could carry entries gets a gate.

    Args:
        model: the base.
        depth: number of blocks nearest the output with gates; None for all.
        only: names of layers, or patterns; by default those of :func:`taskedge.backbone.candidates.candidates`.
    """
    usable = candidates(model, only) if depth is None else candidates_within(model, depth, only)
    whole = {name: linear for name, linear in usable.items() if not isinstance(linear.module, ExpertLinear)}
    return Support(
        linears={},
        model_parameters=sum(parameter.numel() for parameter in model.parameters()),
        rule="taps",
        allocation="layers",
        budget="gates",
        settings={_WHOLE: list(whole)},
        num_full_parameters=sum(linear.shape[0] * linear.shape[1] for linear in whole.values()),
    )


def whole_layers(support: Support) -> list[str]:
    """Return the names of the layers whose whole weight gets a gate; none of a support for other forms."""
    return list(support.settings.get(_WHOLE, ()))


def install_taps(
    model: Model,
    support: Support,
    *,
    trainable: Sequence[str] | None = None,
    threshold: float = GATE_THRESHOLD,
    rate: float = GATE_LEARNING_RATE,
    norms: str = "shared",
) -> Model:
    """Let the whole layers of a support change behind gates, and freeze the rest but what ``trainable`` names.

    ``taskedge.fuse`` undoes it, and ``taskedge.extract`` returns the open layers.

    Args:
        model: the base.
        support: from :func:`taps_support`.
        trainable: names or patterns of parameters that train in full; None: the model's head.
        threshold: a gate is open from this score on; scores start at 0.15.
        rate: peak learning rate of the scores, which :func:`taskedge.training.optimizer.make_optimizer` reads.
        norms: ``"shared"``: those of the base, with its running statistics; ``"task"``: weights, biases and running
            statistics of all norms are the task's.

    Raises:
        InputError: nothing to gate, a name that the model lacks, a layer whose weight cannot change whole, a threshold
            above the start, or a model that trains a support already. The model is unchanged then.
    """
    if installation(model) is not None:
        raise InputError("the model already trains a support: fuse it before another is installed")
    if norms not in NORMS:
        raise InputError(f"unknown norms {norms!r}{did_you_mean(norms, NORMS)} (known: {', '.join(NORMS)})")
    if not 0 < threshold <= GATE_START:
        raise InputError(f"a threshold of {threshold}: scores start at {GATE_START:g}: give one above 0 and up to that")
    layers, names = linears(model), whole_layers(support)
    unusable = unusable_linears(model, layers)
    if not names:
        raise InputError("no layer of the support gets a gate: make it with taps_support(model)")
    for name in names:
        if name not in layers:
            raise InputError(f"the model has no linear {name!r}{did_you_mean(name, layers)}")
        if name in unusable:
            raise InputError(f"linear {name!r} cannot change whole: {unusable[name]}")
        check_whole(layers[name])
    own = norm_parameters(model) if norms == "task" else []
    full = full_parameter_names(model, replace(support, full_parameters=tuple(own)), layers, trainable)
    both = {layers[name].parameter for name in names} & {*full}
    if both:
        raise InputError(f"{min(both)!r} gets a gate, so it cannot train in full as well: leave it out of trainable")
    statistics = tuple(norm_statistics(model)) if norms == "task" else ()
    required_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    model.requires_grad_(False)
    if norms == "shared":
        fix_statistics(model)
    for name in names:
        make_taps(layers[name], threshold, rate)
    add_master_weights(model, full)
    for name, parameter in model.named_parameters():
        if name in full:
            parameter.requires_grad_(True)
    set_installation(model, Installation(support, tuple(full), required_grad, "plain", "taps", statistics=statistics))
    return model
