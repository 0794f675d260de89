"""``hold``: the linears of a whole model are held as int8, or mapped (:mod:`.frozen_layer`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from taskedge.backbone import HOLDS
from taskedge.backbone.linears import candidates
from taskedge.backbone.storage import memory_map as mapping
from taskedge.backbone.storage.frozen_layer import HeldLayer, can_be_held, from_base
from taskedge.errors import InputError, did_you_mean

Model = TypeVar("Model", bound=nn.Module)


def hold(model: Model, how: str, say: Callable[[str], None] = lambda _: None) -> Model:
    """Makes the linears that may carry entries hold their weights; embeddings, norms, biases and the head stay.

    One linear after the other, so that a base that the loader has mapped is never in memory as a whole.

    Args:
        model: as it was loaded, nothing installed and no delta applied. One that is held already stays as it is.
        how: ``"int8"``: a code of 8 bits per weight and a scale per neuron. ``"mapped"``: the loader's mapping of the
            file, never written to, so that it stays shared with other processes. ``"loaded"`` does nothing.
        say: told what that saves.

    Returns:
        The same model.

    Raises:
        InputError: an unknown way; no linear can be held; none is mapped; weights that are not finite: the model is of
            no use then.
    """
    if how not in HOLDS:
        raise InputError(f"unknown base {how!r}{did_you_mean(how, HOLDS)} (known: {', '.join(HOLDS)})")
    if how == "loaded" or any(isinstance(module, HeldLayer) for module in model.modules()):
        return model
    linears = {name: linear for name, linear in candidates(model).items() if can_be_held(linear.module)}
    if not linears:
        raise InputError(f"no linear of {type(model).__name__} is a plain one: load the base with base='loaded'")
    lying = mapping.mapped(model.parameters())
    if how == "mapped":
        _check_mapped(model, lying, say)
        mapping.watch(model, lying)
        for name, linear in linears.items():
            from_base(name, linear.module, int8=False)
        return model
    in_file = {tensor.data_ptr() for tensors in lying.values() for tensor in tensors}
    _copy_small(model, in_file)
    before, after, left = 0, 0, list[Tensor]()
    for name, linear in linears.items():
        weight = linear.stored
        layer = from_base(name, linear.module, int8=True)
        before, after = before + weight.nbytes, after + layer.held.weight.nbytes
        if weight.data_ptr() in in_file:
            left.append(weight)
            mapping.drop_pages(weight)
    for weight in left:  # again: the system has brought in what lies near the next ones
        mapping.drop_pages(weight)
    say(f"the weights of {len(linears)} linears are held as int8: {after / 1e6:.1f} MB, not {before / 1e6:.1f}")
    return model


def _copy_small(model: nn.Module, in_file: set[int]) -> None:
    """Takes biases and norms out of the file: the system would bring in what lies near, which is not read any more."""
    for parameter in model.parameters():
        if parameter.dim() < 2 and parameter.data_ptr() in in_file:
            parameter.data = parameter.data.clone()


def _check_mapped(model: nn.Module, lying: dict[mapping.Mapping, list[Tensor]], say: Callable[[str], None]) -> None:
    """Says what is mapped; raises where nothing is, though the system would tell."""
    there = sum(tensor.nbytes for tensors in lying.values() for tensor in tensors)
    if not there and mapping.MAPS.exists():
        raise InputError(
            f"no weight of {type(model).__name__} is mapped from a file: it was loaded in another dtype than that of "
            "the files, or the loader read them: leave --dtype at 'auto', or load the base with base='loaded'"
        )
    whole = sum(parameter.nbytes for parameter in model.parameters())
    files = ", ".join(sorted({str(place.path) for place in lying}))
    if there:
        say(f"{there / 1e6:.1f} of {whole / 1e6:.1f} MB of the base are mapped from {files}")
