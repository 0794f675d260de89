"""``install`` and ``fuse``: a whole model trains a support in place, and is plain again."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from taskedge.backbone.layer_adapters import Kind
from taskedge.backbone.linears import Linear, head_parameters, linears, why_unusable
from taskedge.errors import InputError, did_you_mean
from taskedge.forms import FORMS, low_rank, sparse
from taskedge.forms import master_weights as master
from taskedge.forms.low_rank import Factors
from taskedge.forms.sparse import SharedInput
from taskedge.selection import RANK
from taskedge.selection.support import LinearSupport, Support

Model = TypeVar("Model", bound=nn.Module)

STEPS = ("plain", "activation")


@dataclass(frozen=True)
class Installation:
    """What ``install`` did to a model: kept on the model, read by ``extract`` and ``fuse``."""

    support: Support
    whole: tuple[str, ...]
    """Names of the parameters that train whole: the head by default."""
    required_grad: dict[str, bool]
    """``requires_grad`` of every parameter before."""
    step: str
    form: str
    moved: bool = False
    """Whether the support is another than the one that was installed (:mod:`taskedge.forms.regrow`)."""


def install(
    model: Model,
    support: Support,
    *,
    trainable: Sequence[str] | None = None,
    step: str = "plain",
    form: str = "sparse",
    rank: int | None = None,
    alpha: float | None = None,
    seed: int = 0,
) -> Model:
    """Makes the model train the support's entries in place, and freezes all else but what ``trainable`` names.

    Linears in ``support.low_rank`` train a low-rank product as a whole instead, and the parameters in
    ``support.whole`` train whole, beside those that ``trainable`` names.

    Afterwards any loop and optimiser over the parameters with ``requires_grad`` trains the task.

    Args:
        model: the module that the support was selected on, or one of its shape.
        support: from :func:`taskedge.select`.
        trainable: names or glob patterns of parameters that train whole (``["classifier.*", "*.LayerNorm.bias"]``);
            None: the model's head; an empty list: nothing. In a half-precision model these become fp32 and are used
            rounded (:mod:`taskedge.forms.master_weights`).
        step: ``"plain"``, or ``"activation"``: the step of an entry is scaled by the inverse of its input's root mean
            square (relative to that of the linear), so that one learning rate moves the outputs equally far whatever
            rule chose the entries (ours). For optimisers whose step does not depend on the gradient's size (Adam).
        form: how the entries are parameterised (``taskedge.forms``): ``"sparse"``, each by itself, or
            ``"sparse_lora"``, as the entries of one product ``alpha/r·BA`` for each linear.
        rank: r of that product, 8 by default; only for a form that has one.
        alpha: for that product and for those of ``support.low_rank``; by default as the rank, so that the product is
            not scaled.
        seed: of the A of all products; B starts as 0.

    Returns:
        The same model.

    Raises:
        InputError: a linear that the model lacks, that has another shape or that cannot carry entries; a name in
            ``trainable`` that is unknown or cannot train whole; options that the form does not have; a model that has
            a support installed already. The model is unchanged then.
    """
    if installation(model) is not None:
        raise InputError("the model already trains a support: fuse it before another is installed")
    if step not in STEPS:
        raise InputError(f"unknown step {step!r}{did_you_mean(step, STEPS)} (known: {', '.join(STEPS)})")
    known_form = FORMS[form]
    if rank is not None and not known_form.factored:
        raise InputError(f"form {form!r} has no rank: leave rank out, or install with form='sparse_lora'")
    if alpha is not None and not (known_form.factored or support.low_rank):
        raise InputError(f"form {form!r} has no alpha, and no linear of the support is low-rank: leave alpha out")
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"alpha={alpha!r}: a finite number above 0 is needed")
    rank = RANK if rank is None else rank
    low_rank.check_rank(f"form {form!r}", rank)
    layers = _checked(model, support)
    whole = _whole(model, support, trainable)
    steps = {
        name: step_sizes(name, linear) if step == "activation" else None for name, linear in support.linears.items()
    }
    required_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    model.requires_grad_(False)
    shared = _shared_inputs(support, layers)
    factors = Factors(torch.Generator().manual_seed(seed), alpha)
    make = known_form.parameterise(rank, factors)
    for name, linear in support.linears.items():
        sparse.from_base(layers[name], linear, shared[linear.reads, layers[name].kind], steps[name], make)
    for name, own_rank in support.low_rank.items():
        low_rank.from_base(layers[name], own_rank, factors)
    master.hold(model, whole)
    for name, parameter in model.named_parameters():
        if name in whole:
            parameter.requires_grad_(True)
    model.__dict__["_taskedge"] = Installation(support, tuple(whole), required_grad, step, form)
    return model


def fuse(model: Model) -> Model:
    """Makes every layer plain again, holding the trained values; parameters require gradients as before ``install``."""
    done = require_installation(model)
    for layer in sparse.sparse_layers(model).values():
        sparse.fuse(layer)
    for product in low_rank.low_rank_layers(model).values():
        low_rank.fuse(product)
    master.release(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(done.required_grad.get(name, parameter.requires_grad))
    del model.__dict__["_taskedge"]
    return model


def installation(model: nn.Module) -> Installation | None:
    """What is installed on the model, or None."""
    return model.__dict__.get("_taskedge")


def require_installation(model: nn.Module) -> Installation:
    """What is installed on the model.

    Raises:
        InputError: nothing is.
    """
    done = installation(model)
    if done is None:
        raise InputError("the model has no support installed: call taskedge.install(model, support) first")
    return done


def _checked(model: nn.Module, support: Support) -> dict[str, Linear]:
    if not (support.linears or support.low_rank or support.whole):
        raise InputError("the support is empty")
    both = support.linears.keys() & support.low_rank.keys()
    if both:
        raise InputError(f"linear {min(both)!r} is to train entries and a low-rank product: it can do one of them only")
    known = linears(model)
    unusable = why_unusable(model, known)
    for name in (*support.linears, *support.low_rank):
        if name not in known:
            raise InputError(f"the model has no linear {name!r}{did_you_mean(name, known)}")
        if name in unusable:
            carried = "entries" if name in support.linears else "a low-rank product"
            raise InputError(f"linear {name!r} cannot carry {carried}: {unusable[name]}")
    for name, chosen in support.linears.items():
        sparse.check(known[name], chosen)
    for name, rank in support.low_rank.items():
        low_rank.check(known[name], rank)
    for name in (*support.linears, *support.low_rank):
        if isinstance(known[name].module, sparse.SparseLayer | low_rank.LowRankLayer):
            raise InputError(f"linear {name!r} already trains: fuse the model before another support is installed")
    return known


def _whole(model: nn.Module, support: Support, trainable: Sequence[str] | None) -> list[str]:
    parameters = dict(model.named_parameters())
    whole = dict.fromkeys(head_parameters(model)) if trainable is None else {}
    for pattern in trainable or ():
        hits = [name for name in parameters if name == pattern or name.startswith(f"{pattern}.")] or fnmatch.filter(
            parameters, pattern
        )
        if not hits:
            raise InputError(f"no parameter is named {pattern!r}{did_you_mean(pattern, parameters)}")
        whole.update(dict.fromkeys(hits))
    for name in support.whole:
        if name not in parameters:
            raise InputError(f"no parameter is named {name!r}{did_you_mean(name, parameters)}")
        whole[name] = None
    carried = {f"{name}.weight".removeprefix("."): "entries" for name in support.linears}
    carried |= {f"{name}.weight".removeprefix("."): "a low-rank product" for name in support.low_rank}
    for name in whole:
        if name in carried:
            raise InputError(
                f"{name!r} carries {carried[name]}, so it cannot train whole as well: leave it out of trainable"
            )
        if not parameters[name].is_floating_point():
            raise InputError(f"{name!r} is {parameters[name].dtype}, not floating point, so it cannot train")
    return list(whole)


def _shared_inputs(support: Support, layers: dict[str, Linear]) -> dict[tuple[str, Kind], SharedInput]:
    """One for each distinct input and kind of reader, holding the union of its readers' columns."""
    readers: dict[tuple[str, Kind], list[LinearSupport]] = {}
    for name, linear in support.linears.items():
        readers.setdefault((linear.reads, layers[name].kind), []).append(linear)
    return {
        (reads, kind): SharedInput(torch.unique(torch.cat([linear.columns for linear in group])), len(group), kind)
        for (reads, kind), group in readers.items()
    }


def step_sizes(name: str, linear: LinearSupport) -> Tensor:
    """float32 [n]: ``rms(A) / A_j`` at the entries, within a factor of 100 of 1."""
    if linear.input_rms is None:
        raise InputError(f"step='activation' needs the input norms of {name!r}: give select() calibration batches")
    typical = linear.input_rms.square().mean().sqrt()
    return (typical / linear.input_rms[linear.columns].clamp_min(1e-12)).clamp(0.01, 100.0)
