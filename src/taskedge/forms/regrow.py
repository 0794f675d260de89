"""Regrowth: while a support trains, the entries that moved least make room for ones that the loss pulls at.

The support stays as large as it was, in every linear. A weight that is dropped gets the base's bits back; one that is
taken in starts at the base, with the optimiser's moments as if it had seen its gradient in every step so far.

Source: SpIEL (arXiv 2401.16405, its accumulated-gradient variant) for dropping by |change|, regrowing by |gradient| and
seeding the moments; the bias correction of the seeds is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskedge.backbone.linears import Linear, as_linear
from taskedge.errors import InputError
from taskedge.forms.install import Installation, require_installation, step_sizes
from taskedge.forms.sparse import FreeEntries, SparseLayer, sparse_layers
from taskedge.selection.allocations import best
from taskedge.selection.support import LinearSupport


@dataclass(frozen=True)
class Move:
    """What changes in one linear.

    Attributes:
        kept: int64 [n - k], places among the entries as they are.
        grown: int64 [k], ``row * in + column`` of the new ones.
        gradient: [k], the candidate gradient there.
    """

    kept: Tensor
    grown: Tensor
    gradient: Tensor


def regrow(model: nn.Module, optimizer: Any, gradient: Callable[[str], Tensor], share: float) -> int:
    """Moves a share of the entries of every linear, and what the optimiser knows of them.

    Args:
        model: trains a support in the form ``"sparse"``.
        optimizer: over the model's parameters; the moments of Adam and its kind move along, other state of a new entry
            starts at 0.
        gradient: gives a linear's candidate gradient [out, in] by name, in any dtype: the mean over some batches of
            the gradient of the loss. It is asked for one linear after the other, and lets go of each.
        share: of the entries of a linear, rounded down; fewer where so many places are not free.

    Returns:
        How many entries moved.

    Raises:
        InputError: nothing is installed, or in another form; a gradient that has another shape or is not finite. The
            model is unchanged.
    """
    done = movable(model)
    layers = sparse_layers(model)
    moves = {}
    for name, layer in layers.items():
        moves[name] = _choose(name, _entries(layer), done.support.linears[name], gradient(name), share)
    count = sum(len(move.grown) for move in moves.values())
    if not count:
        return 0
    places = {name: _place(layer, done.support.linears[name], moves[name]) for name, layer in layers.items()}
    old = {name: _entries(layer).offsets.detach().clone() for name, layer in layers.items()}
    _stand(model, {name: flat for name, (flat, _) in places.items()})
    for name, (_, order) in places.items():
        _carry(_entries(layers[name]), old[name], moves[name], order, optimizer)
    return count


def movable(model: nn.Module) -> Installation:
    """What is installed on the model, if its entries can move.

    Raises:
        InputError: nothing is installed, or in a form whose entries do not train one by one.
    """
    done = require_installation(model)
    if done.form != "sparse":
        raise InputError(
            f"entries move only in the form 'sparse', and the model trains {done.form!r}: leave regrow out"
        )
    return done


def restore(model: nn.Module, support: Mapping[str, Tensor]) -> None:
    """Makes the model train other entries, all at the base's values: those of a run that had moved them.

    Args:
        model: trains a support with as many entries in every linear.
        support: int64 [n] by linear, ``row * in + column``, ascending.

    Raises:
        InputError: other linears, or other counts, than the model trains. The model is unchanged.
    """
    layers = sparse_layers(model)
    if support.keys() != layers.keys() or any(len(support[name]) != len(layers[name].entries.rows) for name in layers):
        raise InputError("the entries are those of another run: it trains other linears, or another number of entries")
    _stand(model, dict(support))
    for layer in layers.values():
        with torch.no_grad():
            _entries(layer).offsets.zero_()


def standing(model: nn.Module) -> dict[str, Tensor]:
    """int64 [n] by linear: where the entries of a model are that were moved; nothing where none was."""
    done = require_installation(model)
    return {name: linear.flat for name, linear in done.support.linears.items()} if done.moved else {}


def _choose(name: str, entries: FreeEntries, support: LinearSupport, gradient: Tensor, share: float) -> Move:
    if gradient.shape != support.shape:
        raise InputError(f"the gradient of linear {name!r} is {list(gradient.shape)}, not {list(support.shape)}")
    if not bool(gradient.isfinite().all()):
        raise InputError(f"the gradient of linear {name!r} is not finite")
    count = min(int(share * len(support)), gradient.numel() - len(support))
    change = entries.offsets.detach() if entries.step is None else entries.offsets.detach() * entries.step
    kept = best(change.abs(), len(support) - count).sort().values
    wanted = gradient.abs().flatten()
    wanted[support.flat.to(wanted.device)] = -1.0  # of those that it trains already, none can be new
    grown = best(wanted, count)
    return Move(kept, grown, gradient.flatten()[grown])


def _place(layer: SparseLayer, support: LinearSupport, move: Move) -> tuple[Tensor, Tensor]:
    """``row * in + column`` of the entries after the move, ascending; and where each stands in (kept, grown)."""
    device = layer.entries.rows.device
    flat = torch.cat([support.flat.to(device)[move.kept], move.grown.to(device)])
    return torch.sort(flat)


def _stand(model: nn.Module, places: Mapping[str, Tensor]) -> None:
    """Puts the base back where entries were, and lets them stand elsewhere; offsets are left to the caller."""
    done = require_installation(model)
    layers, supports = sparse_layers(model), dict(done.support.linears)
    for name, flat in places.items():  # all are sound, or none is touched
        before = supports[name]
        supports[name] = LinearSupport.from_flat(before.shape, flat.cpu(), before.reads, before.input_rms)
    for name in places:
        after, entries = supports[name], layers[name].entries
        device = entries.rows.device
        linear = cast(Linear, as_linear(name, layers[name]))
        linear.write(entries.rows, entries.columns, entries.base)
        entries.rows, entries.columns = after.rows.to(device), after.columns.to(device)
        entries.base = linear.read(entries.rows, entries.columns)
        entries.step = None if entries.step is None else step_sizes(name, after).to(entries.step)
        entries.forget_written()
    for entries in (layer.entries for layer in layers.values()):
        together = [other.entries.columns for other in layers.values() if other.entries.input is entries.input]
        entries.input.cover(torch.unique(torch.cat(together)))
        entries.place()
    allocation = done.support.allocation if done.moved else f"{done.support.allocation}, regrown"
    support = replace(done.support, linears=supports, allocation=allocation)
    model.__dict__["_taskedge"] = replace(done, support=support, moved=True)


def _carry(entries: FreeEntries, old: Tensor, move: Move, order: Tensor, optimizer: Any) -> None:
    """Offsets and the optimiser's numbers of the kept entries to where these are now; the new ones' beside them."""
    parameter, kept = entries.offsets, move.kept
    gradient = move.gradient.to(parameter)
    steps = entries.step
    if steps is not None:  # of an offset, as against that of the weight
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        gradient = gradient * steps[rank[len(kept) :]]

    def carried(values: Tensor, new: Tensor) -> Tensor:
        return torch.cat([values[kept], new.to(values)])[order]

    with torch.no_grad():
        parameter.copy_(carried(old, torch.zeros_like(gradient)))
        state = optimizer.state.get(parameter, {})
        betas = next(
            (group.get("betas") for group in optimizer.param_groups if any(p is parameter for p in group["params"])),
            None,
        )
        seeds = _seeds(gradient, betas, state.get("step"))
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and key != "step":
                value.copy_(carried(value, seeds.get(key, torch.zeros_like(gradient))))


def _seeds(gradient: Tensor, betas: tuple[float, float] | None, step: Any) -> dict[str, Tensor]:
    """Adam's moments after as many steps with this very gradient: with the bias corrected they are g and g²."""
    if betas is None or step is None:
        return {}
    first, second = (1 - beta ** float(step) for beta in betas)
    square = gradient.square() * second
    return {"exp_avg": gradient * first, "exp_avg_sq": square, "max_exp_avg_sq": square}


def _entries(layer: SparseLayer) -> FreeEntries:
    return cast(FreeEntries, layer.entries)
