"""Regrowth: while a support trains, the entries that moved least are replaced by ones that the loss pulls at most.

The number of entries of every linear stays the same. A weight that is dropped gets the base's bits back; one that is
added starts at the base, with the optimizer's moments as if it had seen its gradient in every step so far.

Positions in a weight are flat: ``row * in + column``.

Source: SpIEL (arXiv 2401.16405, its accumulated-gradient variant) for dropping by |change|, regrowing by |gradient| and
seeding the moments; this project for the bias correction of the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskedge.backbone.layers import stored_weight, write_entries
from taskedge.errors import InputError
from taskedge.forms.install import Installation, require_installation, set_installation, step_sizes
from taskedge.forms.sparse import FreeEntries, SparseLayer, sparse_layers
from taskedge.selection.allocations import top_indices
from taskedge.selection.support import LayerSupport

_POWERS_OF_STEP = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
"""How moments of Adam follow the step of an entry: the gradient of an offset is the step times that of the weight."""


@dataclass(frozen=True)
class Replacement:
    """Which entries of one linear stay, and which are added for the others.

    Attributes:
        kept: int64 [n - k], indices into the present entries.
        added: int64 [k], positions of the new entries.
        gradient: [k], the candidate gradient there.
    """

    kept: Tensor
    added: Tensor
    gradient: Tensor


def regrow(model: nn.Module, optimizer: Any, gradient: Callable[[str], Tensor], share: float) -> int:
    """Replace a share of the entries of every linear, and move the optimizer's state along.

    Args:
        model: trains a support in the form ``"sparse"``.
        optimizer: over the model's parameters; the moments of Adam and its variants move along, other state of a new
            entry starts at 0.
        gradient: returns a linear's candidate gradient [out, in] by name, in any dtype: the mean over some batches of
            the gradient of the loss. It is called for one linear after the other, and each result is freed before the
            next call.
        share: of the entries of a linear, rounded down; fewer if the weight has fewer free positions.

    Returns:
        The number of entries that were replaced.

    Raises:
        InputError: nothing is installed, or in another form; a gradient that has another shape or is not finite. The
            model is unchanged.
    """
    supports = require_movable(model).support.linears
    layers = sparse_layers(model)
    replacements = {
        name: _choose_replacement(name, _free_entries(layer), supports[name], gradient(name), share)
        for name, layer in layers.items()
    }
    count = sum(len(replacement.added) for replacement in replacements.values())
    if not count:
        return 0
    positions, orders, old_offsets, old_steps = {}, {}, {}, {}
    for name, layer in layers.items():
        positions[name], orders[name] = _new_positions(layer, supports[name], replacements[name])
        old_offsets[name] = _free_entries(layer).offsets.detach().clone()
        old_steps[name] = layer.entries.step
    _move_entries(model, positions)
    for name, layer in layers.items():
        entries, order = _free_entries(layer), orders[name]
        ratio = _step_ratio(old_steps[name], entries.step, replacements[name], order)
        _transfer_state(entries, old_offsets[name], replacements[name], order, ratio, optimizer)
    return count


def require_movable(model: nn.Module) -> Installation:
    """Return what is installed on the model, if its entries can move.

    Raises:
        InputError: nothing is installed, or in a form whose entries do not train one by one.
    """
    installed = require_installation(model)
    if installed.form != "sparse":
        raise InputError(
            f"entries move only in the form 'sparse', and the model trains {installed.form!r}: leave regrow out"
        )
    return installed


def set_positions(model: nn.Module, positions: Mapping[str, Tensor]) -> None:
    """Make the model train other entries, all at the base's values: the entries of a run that had moved them.

    Args:
        model: trains a support with as many entries in every linear.
        positions: int64 [n] by linear, ascending.

    Raises:
        InputError: other linears, or other counts, than the model trains. The model is unchanged.
    """
    layers = sparse_layers(model)
    counts = {name: len(layer.entries.rows) for name, layer in layers.items()}
    if {name: len(flat) for name, flat in positions.items()} != counts:
        raise InputError("the entries are those of another run: it trains other linears, or another number of entries")
    _move_entries(model, dict(positions))
    with torch.no_grad():
        for layer in layers.values():
            _free_entries(layer).offsets.zero_()


def moved_positions(model: nn.Module) -> dict[str, Tensor]:
    """Return the positions int64 [n] of a model's entries by linear; an empty dict if none was moved."""
    installed = require_installation(model)
    return {name: linear.flat for name, linear in installed.support.linears.items()} if installed.regrown else {}


def _choose_replacement(
    name: str, entries: FreeEntries, support: LayerSupport, gradient: Tensor, share: float
) -> Replacement:
    if gradient.shape != support.shape:
        raise InputError(f"the gradient of linear {name!r} is {list(gradient.shape)}, not {list(support.shape)}")
    if not bool(gradient.isfinite().all()):
        raise InputError(f"the gradient of linear {name!r} is not finite")
    count = min(int(share * len(support)), gradient.numel() - len(support))
    change = entries.offsets.detach()
    if entries.step is not None:
        change = change * entries.step
    kept = top_indices(change.abs(), len(support) - count).sort().values
    pull = gradient.abs().flatten()
    pull[support.flat.to(pull.device)] = -1.0  # present entries cannot be added
    added = top_indices(pull, count)
    return Replacement(kept, added, gradient.flatten()[added])


def _new_positions(layer: SparseLayer, support: LayerSupport, replacement: Replacement) -> tuple[Tensor, Tensor]:
    """Return the positions after the replacement, ascending, and the index of each in (kept, added)."""
    device = layer.entries.rows.device
    flat = torch.cat([support.flat.to(device)[replacement.kept], replacement.added.to(device)])
    return torch.sort(flat)


def _move_entries(model: nn.Module, positions: Mapping[str, Tensor]) -> None:
    """Write the base back where entries were and move them to ``positions``; offsets are left to the caller."""
    installed = require_installation(model)
    layers, supports = sparse_layers(model), dict(installed.support.linears)
    for name, flat in positions.items():  # before any layer is changed: invalid positions raise here
        before = supports[name]
        supports[name] = LayerSupport.from_flat(before.shape, flat.cpu(), before.shared_input, before.input_rms)
    for name in positions:
        steps = (installed.step_exponent, installed.support.neuron_share)
        _move_layer_entries(name, layers[name], supports[name], steps)
    for layer in layers.values():
        shared_input = layer.entries.shared_input
        readers = [other.entries for other in layers.values() if other.entries.shared_input is shared_input]
        shared_input.set_columns(torch.unique(torch.cat([entries.columns for entries in readers])))
        layer.entries.reindex()
    allocation = installed.support.allocation
    if not installed.regrown:
        allocation = f"{allocation}, regrown"
    support = replace(installed.support, linears=supports, allocation=allocation)
    set_installation(model, replace(installed, support=support, regrown=True))


@torch.no_grad()
def _move_layer_entries(name: str, layer: SparseLayer, support: LayerSupport, steps: tuple[float, float]) -> None:
    """Write the base back at the layer's entries, then take over the rows and columns of ``support``."""
    entries = layer.entries
    write_entries(layer, entries.adapter.weight_index(entries.rows, entries.columns), entries.base)
    device = entries.rows.device
    entries.rows, entries.columns = support.rows.to(device), support.columns.to(device)
    # read as stored: reading ``layer.weight`` would write the old offsets at the new positions
    entries.base = stored_weight(layer)[entries.adapter.weight_index(entries.rows, entries.columns)]
    if entries.step is not None:
        entries.step = step_sizes(name, support, *steps).to(entries.step)
    entries.invalidate_written()


def _step_ratio(before: Tensor | None, after: Tensor | None, replacement: Replacement, order: Tensor) -> Tensor | None:
    """Return [n - k], the new steps of the kept entries over their old ones; None if all steps are 1.

    The steps of a neuron change with the number of its entries.
    """
    if before is None or after is None:
        return None
    kept = replacement.kept
    return after[_inverse(order)[: len(kept)]] / before[kept]


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def _transfer_state(
    entries: FreeEntries,
    old_offsets: Tensor,
    replacement: Replacement,
    order: Tensor,
    step_ratio: Tensor | None,
    optimizer: Any,
) -> None:
    """Move offsets and optimizer state of the kept entries to their new indices, and set those of the new ones.

    Where the step of a kept entry changed, its offset and moments change with it, so that its weight stays.
    """
    parameter, kept = entries.offsets, replacement.kept
    gradient = replacement.gradient.to(parameter)
    if entries.step is not None:  # from the gradient of a weight to that of its offset
        gradient = gradient * entries.step[_inverse(order)[len(kept) :]]

    def transferred(values: Tensor, new: Tensor, power: int) -> Tensor:
        stay = values[kept]
        if step_ratio is not None:
            stay = stay * step_ratio.to(stay) ** power
        return torch.cat([stay, new.to(values)])[order]

    zeros = torch.zeros_like(gradient)
    with torch.no_grad():
        parameter.copy_(transferred(old_offsets, zeros, -1))
        state = optimizer.state.get(parameter, {})
        seeds = _seed_moments(gradient, _betas(optimizer, parameter), state.get("step"))
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and key != "step":
                value.copy_(transferred(value, seeds.get(key, zeros), _POWERS_OF_STEP.get(key, 0)))


def _betas(optimizer: Any, parameter: Tensor) -> tuple[float, float] | None:
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            betas: tuple[float, float] | None = group.get("betas")
            return betas
    return None


def _seed_moments(gradient: Tensor, betas: tuple[float, float] | None, step: Any) -> dict[str, Tensor]:
    """Return Adam's moments after ``step`` steps with this very gradient: bias-corrected they are g and g²."""
    if betas is None or step is None:
        return {}
    first, second = (1 - beta ** float(step) for beta in betas)
    square = gradient.square() * second
    return {"exp_avg": gradient * first, "exp_avg_sq": square, "max_exp_avg_sq": square}


def _free_entries(layer: SparseLayer) -> FreeEntries:
    return cast(FreeEntries, layer.entries)
