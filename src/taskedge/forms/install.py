"""``install`` and ``fuse``: a whole model trains a support in place, and is plain again."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from taskedge.backbone.linears import Linear, head_parameters, linears, why_unusable
from taskedge.errors import InputError, did_you_mean
from taskedge.forms import master, sparse
from taskedge.forms.sparse import SharedInput
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


def install(model: Model, support: Support, *, trainable: Sequence[str] | None = None, step: str = "plain") -> Model:
    """Makes the model train the support's entries in place, and freezes all else but what ``trainable`` names.

    Afterwards any loop and optimiser over the parameters with ``requires_grad`` trains the task.

    Args:
        model: the module that the support was selected on, or one of its shape.
        support: from :func:`taskedge.select`.
        trainable: names or glob patterns of parameters that train whole (``["classifier.*", "*.LayerNorm.bias"]``);
            None: the model's head; an empty list: nothing. In a half-precision model these become fp32 and are used
            rounded (:mod:`taskedge.forms.master`).
        step: ``"plain"``, or ``"activation"``: the step of an entry is scaled by the inverse of its input's root mean
            square (relative to that of the linear), so that one learning rate moves the outputs equally far whatever
            rule chose the entries (ours). For optimisers whose step does not depend on the gradient's size (Adam).

    Returns:
        The same model.

    Raises:
        InputError: a linear that the model lacks, that has another shape or that cannot carry entries; a name in
            ``trainable`` that is unknown or cannot train whole; a model that has a support installed already. The
            model is unchanged then.
    """
    if installation(model) is not None:
        raise InputError("the model already trains a support: fuse it before another is installed")
    if step not in STEPS:
        raise InputError(f"unknown step {step!r}{did_you_mean(step, STEPS)} (known: {', '.join(STEPS)})")
    layers = _checked(model, support)
    whole = _whole(model, support, trainable)
    steps = {name: _step(name, linear) if step == "activation" else None for name, linear in support.linears.items()}
    required_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    model.requires_grad_(False)
    shared = _shared_inputs(support)
    for name, linear in support.linears.items():
        sparse.from_base(layers[name], linear, shared[linear.reads], steps[name])
    master.hold(model, whole)
    for name, parameter in model.named_parameters():
        if name in whole:
            parameter.requires_grad_(True)
    model.__dict__["_taskedge"] = Installation(support, tuple(whole), required_grad, step)
    return model


def fuse(model: Model) -> Model:
    """Makes every layer plain again, holding the trained values; parameters require gradients as before ``install``."""
    done = require_installation(model)
    for layer in sparse.sparse_layers(model).values():
        sparse.fuse(layer)
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
    if not support.linears:
        raise InputError("the support is empty")
    known = linears(model)
    unusable = why_unusable(model, known)
    for name, chosen in support.linears.items():
        if name not in known:
            raise InputError(f"the model has no linear {name!r}{did_you_mean(name, known)}")
        if name in unusable:
            raise InputError(f"linear {name!r} cannot carry entries: {unusable[name]}")
        sparse.check(known[name], chosen)
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
    with_entries = {f"{name}.weight".removeprefix(".") for name in support.linears}
    for name in whole:
        if name in with_entries:
            raise InputError(f"{name!r} carries entries, so it cannot train whole as well: leave it out of trainable")
        if not parameters[name].is_floating_point():
            raise InputError(f"{name!r} is {parameters[name].dtype}, not floating point, so it cannot train")
    return list(whole)


def _shared_inputs(support: Support) -> dict[str, SharedInput]:
    """One for each distinct input, holding the union of its readers' columns."""
    readers: dict[str, list[LinearSupport]] = {}
    for linear in support.linears.values():
        readers.setdefault(linear.reads, []).append(linear)
    return {
        reads: SharedInput(torch.unique(torch.cat([linear.columns for linear in group])), len(group))
        for reads, group in readers.items()
    }


def _step(name: str, linear: LinearSupport) -> Tensor:
    """float32 [n]: ``rms(A) / A_j`` at the entries, within a factor of 100 of 1."""
    if linear.input_rms is None:
        raise InputError(f"step='activation' needs the input norms of {name!r}: give select() calibration batches")
    typical = linear.input_rms.square().mean().sqrt()
    return (typical / linear.input_rms[linear.columns].clamp_min(1e-12)).clamp(0.01, 100.0)
