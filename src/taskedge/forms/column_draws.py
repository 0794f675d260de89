"""Columns that change during training: one draw of columns trains at a time, and a pass keeps only its columns.

A support with several draws (``select(..., columns=C, column_draws=D)``) holds the entries of all of them. Between two
draws the values that the earlier one reached stay in the weight. Training keeps C columns of each input, and the delta
holds up to C·D.

Source: TraDy (arXiv 2510.19675) and MeDyate (arXiv 2510.20979) for channels that are drawn anew each epoch; this
project for columns that linears share, and for training in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from taskedge.errors import InputError
from taskedge.forms.install import require_installation
from taskedge.forms.regrow import require_movable
from taskedge.forms.sparse import sparse_layers

_SETTING = "drawn_columns"


def number_of_draws(model: nn.Module) -> int:
    """Return the number of draws of the installed support; 1 if its columns do not change.

    Raises:
        InputError: nothing is installed.
    """
    draws = require_installation(model).support.settings.get(_SETTING)
    return len(next(iter(draws.values()))) if draws else 1


def use_draw(model: nn.Module, draw: int, optimizer: Any = None) -> None:
    """Let only the entries in the columns of one draw train, and let passes keep only these columns.

    Args:
        model: trains a support with several draws.
        draw: index of the draw.
        optimizer: over the model's parameters. Moments of entries outside the draw are set to 0, so that they stay
            where they are.

    Raises:
        InputError: the support has no such draw, or another form than ``"sparse"``. The model is unchanged.
    """
    draws = require_movable(model).support.settings.get(_SETTING) or {}
    if not 0 <= draw < number_of_draws(model) or not draws:
        raise InputError(f"the support has {number_of_draws(model)} draws of columns, and none with index {draw}")
    layers = {name: layer.entries for name, layer in sparse_layers(model).items()}
    for name, entries in layers.items():
        columns = torch.tensor(draws[name][draw], device=entries.columns.device)
        entries.active = torch.isin(entries.columns, columns).nonzero().flatten()
    for entries in layers.values():
        readers = [other for other in layers.values() if other.shared_input is entries.shared_input]
        entries.shared_input.set_columns(torch.unique(torch.cat([other.columns[other.active] for other in readers])))
        entries.reindex()
        if optimizer is not None:
            for parameter in entries.parameters(recurse=False):
                _still_moments(optimizer.state.get(parameter, {}), parameter, entries.active)


def _still_moments(state: dict[str, Any], parameter: nn.Parameter, active: torch.Tensor | None) -> None:
    """Set what the optimizer keeps for each entry to 0 where an entry is not active."""
    still = torch.ones(len(parameter), dtype=torch.bool, device=parameter.device)
    still[active] = False
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape and key != "step":
            value[still] = 0
