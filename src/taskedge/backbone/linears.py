"""The linears of a model (every layer that is a matrix product), which of them can carry entries, and its head."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from taskedge.backbone.blocks import blocks, blocks_within
from taskedge.backbone.layer_adapters import Kind, kind_of
from taskedge.backbone.storage.frozen_layer import HeldLayer
from taskedge.errors import InputError, did_you_mean

HEAD_NAMES = ("head", "classifier", "score", "fc", "heads", "qa_outputs")


@dataclass(frozen=True)
class Linear:
    """A layer that computes ``Y = X Wᵀ + b``; what these matrices are to it is up to its kind."""

    name: str
    module: nn.Module
    kind: Kind

    @property
    def stored(self) -> Tensor:
        """The weight as the layer stores it, without gradient."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.detach()

    @property
    def weight(self) -> Tensor:
        """The weight as [out, in], to be read."""
        return self.kind.matrix(self.stored)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        out, inputs = self.weight.shape
        return out, inputs

    def read(self, rows: Tensor, columns: Tensor) -> Tensor:
        """A copy of the entries [n], in the weight's dtype."""
        stored = self.stored
        return stored[self.kind.place(rows.to(stored.device), columns.to(stored.device))]

    def write(self, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        """Writes entries [n] into the model, rounded to the weight's dtype."""
        stored = self.stored
        place = self.kind.place(rows.to(stored.device), columns.to(stored.device))
        if isinstance(self.module, HeldLayer):
            self.module.lay_over(place, values)
        else:
            stored.index_put_(place, values.to(device=stored.device, dtype=stored.dtype))


def as_linear(name: str, module: nn.Module) -> Linear | None:
    """``module`` seen as a linear, or None where it is none."""
    kind = kind_of(module)
    return None if kind is None else Linear(name, module, kind)


def version(x: Tensor) -> int:
    """How often ``x`` was changed in place; 0 for one made in inference mode, which does not count."""
    return 0 if x.is_inference() else x._version


def linears(model: nn.Module) -> dict[str, Linear]:
    """Every linear of the model by name, in the order of its modules."""
    found = (as_linear(name, module) for name, module in model.named_modules())
    return {linear.name: linear for linear in found if linear is not None}


def candidates(model: nn.Module, only: Sequence[str] | None = None) -> dict[str, Linear]:
    """The linears that may carry entries.

    By default these are the linears and convolutions inside the model's repeated blocks; where it has none, all linears
    but the head. ``only`` names layers (or glob patterns such as ``"*.attention.*"``) instead, and is the only way to
    embeddings and to convolutions elsewhere. Left out in any case: layers whose weight is tied to another module (an
    entry would silently change that one too), and others that cannot carry entries (:func:`why_unusable`).

    Raises:
        InputError: the model has no linears, or a name in ``only`` matches none that can be used.
    """
    everything = linears(model)
    if not everything:
        raise InputError(f"{type(model).__name__} has no linear layers, so there is nothing to select from")
    unusable = why_unusable(model, everything)
    names = _by_default(model, everything, unusable) if only is None else _matching(only, everything, unusable)
    return {name: everything[name] for name in names}


def candidates_within(model: nn.Module, depth: int, only: Sequence[str] | None = None) -> dict[str, Linear]:
    """Those of :func:`candidates` that lie in the ``depth`` blocks nearest the output.

    Raises:
        InputError: as there; the model has no so many blocks; none of the linears is in these.
    """
    inside = tuple(f"{block.name}." for block in blocks_within(model, depth))
    found = {name: linear for name, linear in candidates(model, only).items() if name.startswith(inside)}
    if not found:
        raise InputError(f"no linear at depth {depth} or nearer the output can carry entries: give a larger one")
    return found


def _by_default(model: nn.Module, everything: dict[str, Linear], unusable: dict[str, str]) -> list[str]:
    inside = tuple(f"{block.name}." for block in blocks(model))
    head = set(head_parameters(model))
    asked = [
        name
        for name, linear in everything.items()
        if (
            name.startswith(inside) and linear.kind.takes_part != "on request"
            if inside
            else f"{name}.weight" not in head and linear.kind.takes_part == "everywhere"
        )
    ]
    names = [name for name in asked if name not in unusable]
    if not names:
        reasons = [f"{name}: {why}" for name, why in unusable.items()]
        reasons += [
            f"{name}: takes part {linear.kind.takes_part} only, so name it in linears"
            for name, linear in everything.items()
            if name not in unusable and linear.kind.takes_part != "everywhere"
        ]
        why = "; ".join(reasons) or "its only linears are the head"
        raise InputError(f"no linear of {type(model).__name__} can carry entries ({why})")
    return names


def why_unusable(model: nn.Module, everything: dict[str, Linear]) -> dict[str, str]:
    """Linears that cannot carry entries, with the reason."""
    owners = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    unusable = {}
    for name, linear in everything.items():
        weight = linear.module._parameters.get("weight")
        parent = model.get_submodule(name.rpartition(".")[0])
        if weight is None:
            unusable[name] = "its weight is computed, not stored (quantised or parametrised)"
        elif owners[id(weight)] > 1:
            unusable[name] = "its weight is tied to another module"
        elif not (weight.is_floating_point() or isinstance(linear.module, HeldLayer)):
            unusable[name] = f"its weight is {weight.dtype}, not floating point"
        elif isinstance(parent, nn.MultiheadAttention):
            unusable[name] = "nn.MultiheadAttention reads its weight without calling it"
        elif (why := linear.kind.why_not(linear.module)) is not None:
            unusable[name] = why
    return unusable


def _matching(patterns: Sequence[str], everything: dict[str, Linear], unusable: dict[str, str]) -> list[str]:
    chosen: dict[str, None] = {}
    for pattern in patterns:
        hits = fnmatch.filter(everything, pattern)
        if not hits:
            raise InputError(f"no linear is named {pattern!r}{did_you_mean(pattern, everything)}")
        usable = [name for name in hits if name not in unusable]
        if not usable:
            raise InputError(f"linear {hits[0]!r} cannot carry entries: {unusable[hits[0]]}")
        chosen.update(dict.fromkeys(usable))
    return [name for name in everything if name in chosen]


def head_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of the model's task head, which is trained whole.

    For a Hugging Face model: what lies outside its ``base_model``, unless that is a language-model head (which is
    pretrained). For any other module: a top-level child with a customary name (``head``, ``classifier``, ``fc``,
    ...), else the last linear outside the repeated blocks, provided that there is more than one linear.
    """
    base_prefix = getattr(model, "base_model_prefix", "")
    if base_prefix:
        get_outputs = getattr(model, "get_output_embeddings", None)
        if (callable(get_outputs) and get_outputs() is not None) or not hasattr(model, base_prefix):
            return []
        return [name for name, _ in model.named_parameters() if not name.startswith(f"{base_prefix}.")]
    for name in HEAD_NAMES:
        child = getattr(model, name, None)
        if isinstance(child, nn.Module) and any(True for _ in child.parameters()):
            return [f"{name}.{parameter}" for parameter, _ in child.named_parameters()]
    inside = tuple(f"{block.name}." for block in blocks(model))
    plain = [name for name, linear in linears(model).items() if linear.kind.takes_part == "everywhere"]
    outside = [name for name in plain if not (inside and name.startswith(inside))]
    if not outside or len(plain) < 2:
        return []
    return [f"{outside[-1]}.{parameter}" for parameter, _ in model.get_submodule(outside[-1]).named_parameters()]
