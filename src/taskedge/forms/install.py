"""``install`` and ``fuse``: make a model train a support in place, and make it plain again."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from taskedge.backbone.candidates import head_parameters, unusable_linears
from taskedge.backbone.experts import expose, exposed_experts, unexpose
from taskedge.backbone.layers import LayerAdapter, Linear, linears
from taskedge.errors import InputError, did_you_mean
from taskedge.forms import STEP_EXPONENT
from taskedge.forms.entries import SharedInput
from taskedge.forms.form_registry import FORMS, Form
from taskedge.forms.low_rank import (
    Factors,
    LowRankLayer,
    check_low_rank,
    check_rank,
    fuse_low_rank,
    low_rank_layers,
    make_low_rank,
)
from taskedge.forms.master_weights import add_master_weights, remove_master_weights
from taskedge.forms.norms import fix_statistics, release_statistics
from taskedge.forms.prompt import CANNOT_BE_FUSED_PROMPT, attached_prompt
from taskedge.forms.sparse import SparseLayer, check_entries, fuse_sparse, make_sparse, sparse_layers
from taskedge.forms.sparse_plus_low_rank import fuse_sparse_plus_low_rank, sparse_plus_low_rank_layers
from taskedge.forms.start import check_start, set_start
from taskedge.forms.taps import fuse_taps, taps_layers
from taskedge.selection import DEFAULT_RANK
from taskedge.selection.support import LayerSupport, Support

Model = TypeVar("Model", bound=nn.Module)

STEPS = ("plain", "activation")

_KEY = "_taskedge"
_LEAST_SHARE = 0.1
"""Steps are divided by the share of neurons that have entries, down to this one."""
_MAX_STEP_RATIO = 100.0
"""Steps are scaled by the input within this factor of 1."""


@dataclass(frozen=True)
class Installation:
    """The record of an ``install`` call: kept on the model, read by ``extract`` and ``fuse``.

    Attributes:
        support: the entries and low-rank products that train.
        full_parameters: names of the parameters that train in full: the head by default.
        required_grad: ``requires_grad`` of every parameter before.
        step, form, step_exponent: as given to ``install``.
        regrown: whether entries were moved since (:mod:`taskedge.forms.regrow`).
        statistics: names of the buffers that the task has of its own: running statistics of norms.
    """

    support: Support
    full_parameters: tuple[str, ...]
    required_grad: dict[str, bool]
    step: str
    form: str
    regrown: bool = False
    step_exponent: float = STEP_EXPONENT
    statistics: tuple[str, ...] = ()


def install(
    model: Model,
    support: Support,
    *,
    trainable: Sequence[str] | None = None,
    step: str = "plain",
    step_exponent: float = STEP_EXPONENT,
    form: str = "sparse",
    rank: int | None = None,
    alpha: float | None = None,
    seed: int = 0,
) -> Model:
    """Make the model train the support's entries in place, and freeze everything else that ``trainable`` does not name.

    Norms use their running statistics unchanged, in training as in inference, because a delta holds none of them.
    Linears in ``support.low_rank`` train a low-rank product instead, and the parameters in ``support.full_parameters``
    train in full, besides those that ``trainable`` names. Training starts from ``support.start``, if there is one.

    Afterwards any loop and optimizer over the parameters with ``requires_grad`` trains the task.

    Args:
        model: the module that the support was selected on, or one of its shape.
        support: from :func:`taskedge.select`.
        trainable: names or glob patterns of parameters that train in full (``["classifier.*", "*.LayerNorm.bias"]``);
            None: the model's head; an empty list: nothing. In a half-precision model these become fp32 and are used
            rounded (:mod:`taskedge.forms.master_weights`).
        step: ``"plain"``, or ``"activation"``: the step of an entry is scaled by the inverse of its input's root mean
            square (relative to the linear's typical one) and of a power of the number of entries of its neuron, so
            that one learning rate suits whatever rule chose the entries, and however many there are (Source: this
            project). For optimizers whose step does not depend on the size of the gradient (Adam).
        step_exponent: that power, 0 to 1; 0: the number of entries does not count.
        form: how the entries are parameterized (``taskedge.forms``): ``"sparse"``, independently, or
            ``"sparse_lora"``, as the entries of one product ``alpha/r·BA`` for each linear, or
            ``"sparse_plus_low_rank"``, independently and beside such a product for each of these linears.
        rank: r of that product, 8 by default; only for a form that has one.
        alpha: for that product and for those of ``support.low_rank``; by default the rank, so that the product is not
            scaled.
        seed: for drawing A of all products; B starts as 0.

    Returns:
        The same model.

    Raises:
        InputError: a linear that the model lacks, that has another shape or that cannot carry entries; a name in
            ``trainable`` that is unknown or cannot train in full; options that the form does not have; a model that has
            a support installed already. The model is unchanged then.
    """
    if installation(model) is not None:
        raise InputError("the model already trains a support: fuse it before another is installed")
    if step not in STEPS:
        raise InputError(f"unknown step {step!r}{did_you_mean(step, STEPS)} (known: {', '.join(STEPS)})")
    if not 0 <= step_exponent <= 1:
        raise InputError(f"{step_exponent} is no exponent of the steps: give a number from 0 to 1")
    rank = _checked_rank(FORMS[form], support, rank, alpha)
    layers = _checked_layers(model, support)
    if FORMS[form].add_product is not None:
        for name in support.linears:
            check_low_rank(layers[name], rank)
    full_parameters = full_parameter_names(model, support, layers, trainable)
    check_start(support, dict(model.named_parameters()), form)
    steps: dict[str, Tensor | None] = dict.fromkeys(support.linears)
    if step == "activation":
        share = support.neuron_share
        steps = {name: step_sizes(name, linear, step_exponent, share) for name, linear in support.linears.items()}
    required_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    model.requires_grad_(False)
    fix_statistics(model)
    shared_inputs = _shared_inputs(support, layers)
    factors = Factors(torch.Generator().manual_seed(seed), alpha)
    make_entries, add_product = FORMS[form].make(rank, factors), FORMS[form].add_product
    expose(layers[name].module for name in (*support.linears, *support.low_rank))
    for name, linear in support.linears.items():
        shared_input = shared_inputs[linear.shared_input, layers[name].adapter]
        make_sparse(layers[name], linear, shared_input, steps[name], make_entries)
        if add_product is not None:
            add_product(layers[name], rank, factors)
    for name, own_rank in support.low_rank.items():
        make_low_rank(layers[name], own_rank, factors)
    add_master_weights(model, full_parameters)
    for name, parameter in model.named_parameters():
        if name in full_parameters:
            parameter.requires_grad_(True)
    set_start(model, support)
    set_installation(
        model, Installation(support, tuple(full_parameters), required_grad, step, form, step_exponent=step_exponent)
    )
    return model


def fuse(model: Model) -> Model:
    """Make every layer plain again, with the trained values; parameters require gradients as before ``install``.

    Raises:
        InputError: nothing is installed, or the form cannot be fused. The model is unchanged.
    """
    installed = require_installation(model)
    if attached_prompt(model) is not None:
        raise InputError(f"{CANNOT_BE_FUSED_PROMPT}; extract a delta, and remove the prompt before fusing")
    for low_rank_layer in low_rank_layers(model).values():
        low_rank_layer.product.factors()  # some changes cannot be fused: before anything is
    for layer in sparse_plus_low_rank_layers(model).values():
        fuse_sparse_plus_low_rank(layer)
    for sparse_layer in sparse_layers(model).values():
        fuse_sparse(sparse_layer)
    for low_rank_layer in low_rank_layers(model).values():
        fuse_low_rank(low_rank_layer)
    for taps_layer in taps_layers(model).values():
        fuse_taps(taps_layer)
    unexpose(exposed_experts(model))
    release_statistics(model)
    remove_master_weights(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(installed.required_grad.get(name, parameter.requires_grad))
    del model.__dict__[_KEY]
    return model


def installation(model: nn.Module) -> Installation | None:
    """Return what is installed on the model, or None."""
    return model.__dict__.get(_KEY)


def require_installation(model: nn.Module) -> Installation:
    """Return what is installed on the model.

    Raises:
        InputError: nothing is installed.
    """
    installed = installation(model)
    if installed is None:
        raise InputError("the model has no support installed: call taskedge.install(model, support) first")
    return installed


def set_installation(model: nn.Module, installed: Installation) -> None:
    """Record on the model what is installed."""
    model.__dict__[_KEY] = installed


def step_sizes(name: str, linear: LayerSupport, exponent: float = STEP_EXPONENT, neuron_share: float = 1.0) -> Tensor:
    """Return float32 [n]: ``rms(A) / A_j / K_i^exponent / S`` at the entries (i, j).

    A are the input norms; their ratio is kept within a factor of 100 of 1. K_i is the number of entries in row i. S is
    the share of neurons with entries in the whole support, and at least 1/10: the fewer neurons change, the more each
    one has to. Source: this project (``benchmarks.accuracy.step_law``).
    """
    if linear.input_rms is None:
        raise InputError(f"step size 'activation' needs the input norms of {name!r}: select with calibration batches")
    typical = linear.input_rms.square().mean().sqrt()
    ratio = typical / linear.input_rms[linear.columns].clamp_min(1e-12)
    of_row = torch.bincount(linear.rows, minlength=linear.shape[0]).float()
    steps = ratio.clamp(1 / _MAX_STEP_RATIO, _MAX_STEP_RATIO) * of_row[linear.rows].pow(-exponent)
    return steps / step_share(neuron_share)


def step_share(neuron_share: float) -> float:
    """Return what steps are divided by in a support with entries in this share of the neurons, 0.1 to 1."""
    return max(neuron_share, _LEAST_SHARE)


def _checked_rank(form: Form, support: Support, rank: int | None, alpha: float | None) -> int:
    """Return the rank to use; raise InputError for options that neither the form nor the support has."""
    if rank is not None and not form.factored:
        raise InputError(f"form {form.name!r} has no rank: leave out the rank, or use the form 'sparse_lora'")
    if alpha is not None and not (form.factored or support.low_rank):
        raise InputError(f"form {form.name!r} has no alpha, and no linear of the support is low-rank: leave alpha out")
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"alpha {alpha}: a finite number above 0 is needed")
    rank = DEFAULT_RANK if rank is None else rank
    check_rank(f"form {form.name!r}", rank)
    return rank


def _checked_layers(model: nn.Module, support: Support) -> dict[str, Linear]:
    """Return the model's linears; raise InputError if one of the support cannot train what it is to train."""
    if not (support.linears or support.low_rank or support.full_parameters):
        raise InputError("the support is empty")
    both = support.linears.keys() & support.low_rank.keys()
    if both:
        raise InputError(
            f"linear {min(both)!r} is to train entries and a low-rank product: give entries only, with the "
            "form 'sparse_plus_low_rank'"
        )
    layers = linears(model)
    unusable = unusable_linears(model, layers)
    for name in (*support.linears, *support.low_rank):
        if name not in layers:
            raise InputError(f"the model has no linear {name!r}{did_you_mean(name, layers)}")
        if name in unusable:
            carried = "entries" if name in support.linears else "a low-rank product"
            raise InputError(f"linear {name!r} cannot carry {carried}: {unusable[name]}")
    for name, linear in support.linears.items():
        check_entries(layers[name], linear)
    for name, rank in support.low_rank.items():
        check_low_rank(layers[name], rank)
    for name in (*support.linears, *support.low_rank):
        if isinstance(layers[name].module, SparseLayer | LowRankLayer):
            raise InputError(f"linear {name!r} already trains: fuse the model before another support is installed")
    return layers


def full_parameter_names(
    model: nn.Module, support: Support, layers: dict[str, Linear], trainable: Sequence[str] | None
) -> list[str]:
    """Return the names of the parameters that train in full, in the order in which they were named.

    Args:
        model: the model.
        support: names some in ``full_parameters``; weights of its linears cannot be among them.
        layers: all linears of the model.
        trainable: names or patterns; None: the model's head.

    Raises:
        InputError: a name is unknown, or belongs to a parameter that cannot train in full.
    """
    parameters = dict(model.named_parameters())
    names = dict.fromkeys(head_parameters(model)) if trainable is None else {}
    for pattern in trainable or ():
        matches = [name for name in parameters if name == pattern or name.startswith(f"{pattern}.")]
        matches = matches or fnmatch.filter(parameters, pattern)
        if not matches:
            raise InputError(f"no parameter is named {pattern!r}{did_you_mean(pattern, parameters)}")
        names.update(dict.fromkeys(matches))
    for name in support.full_parameters:
        if name not in parameters:
            raise InputError(f"no parameter is named {name!r}{did_you_mean(name, parameters)}")
        names[name] = None
    carried = {layers[name].parameter: "entries" for name in support.linears}
    carried |= {layers[name].parameter: "a low-rank product" for name in support.low_rank}
    for name in names:
        if name in carried:
            raise InputError(
                f"{name!r} carries {carried[name]}, so it cannot train in full as well: leave it out of trainable"
            )
        if not parameters[name].is_floating_point():
            raise InputError(f"{name!r} is {parameters[name].dtype}, not floating point, so it cannot train")
    return list(names)


def _shared_inputs(support: Support, layers: dict[str, Linear]) -> dict[tuple[str, LayerAdapter], SharedInput]:
    """Return one for each distinct input and adapter of its readers, with the union of the readers' columns."""
    readers: dict[tuple[str, LayerAdapter], list[LayerSupport]] = {}
    for name, linear in support.linears.items():
        readers.setdefault((linear.shared_input, layers[name].adapter), []).append(linear)
    return {
        (name, adapter): SharedInput(torch.unique(torch.cat([linear.columns for linear in group])), len(group), adapter)
        for (name, adapter), group in readers.items()
    }
