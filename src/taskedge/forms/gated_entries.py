"""The gate of TAPS on entries: a linear trains its chosen entries while its gate is open, else it costs nothing.

A closed gate needs no gradient, so passes keep no columns for it, and the delta has no bytes of it. Without a gradient
it gets no signal to open again: unlike a whole layer, a closed linear stays closed, but for what momentum is left.

Source: TAPS (arXiv 2203.16708) for the gate; this project for the gate on entries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taskedge.backbone.layers import Linear
from taskedge.errors import InputError
from taskedge.forms.entries import MakeEntries, SharedInput
from taskedge.forms.form_registry import form
from taskedge.forms.low_rank import Factors
from taskedge.forms.sparse import FreeEntries, sparse_layers
from taskedge.forms.taps import GATE_LEARNING_RATE, GATE_THRESHOLD, LayerGate
from taskedge.selection.support import LayerSupport


class GatedEntries(FreeEntries):
    """Entries of a linear behind one gate.

    Attributes:
        layer_gate: its gate.
    """

    layer_gate: LayerGate

    def __init__(self, linear: Linear, support: LayerSupport, shared_input: SharedInput, step: Tensor | None) -> None:
        super().__init__(linear, support, shared_input, step)
        self.layer_gate = LayerGate(GATE_THRESHOLD, GATE_LEARNING_RATE, self.rows.device)

    @property
    def is_open(self) -> bool:
        """Whether the entries have their changes now."""
        return self.layer_gate.is_open

    def current_offsets(self) -> Tensor:
        """Return the offsets; zeros without a gradient if the gate is closed."""
        if not self.is_open:
            return torch.zeros_like(self.offsets)
        return self.layer_gate.through(self.offsets)


@form("sparse_taps")
def sparse_taps(rank: int, factors: Factors) -> MakeEntries:
    """Make entries behind a gate on each linear; ``rank`` and ``factors`` are not used."""
    return GatedEntries


def set_gates(model: nn.Module, threshold: float, rate: float) -> None:
    """Set the threshold and the learning rate of the gates of all entries.

    Raises:
        InputError: the model has no gates on entries.
    """
    gated = [layer.entries for layer in sparse_layers(model).values() if isinstance(layer.entries, GatedEntries)]
    if not gated:
        raise InputError("the model has no gates on entries: install the support with the form 'sparse_taps'")
    for entries in gated:
        entries.layer_gate.threshold, entries.layer_gate.rate = threshold, rate


def keep_open_columns(model: nn.Module) -> None:
    """Let passes keep the input columns of linears with open gates only; to be called after a gate changed."""
    readers: dict[int, list[GatedEntries]] = {}
    for layer in sparse_layers(model).values():
        if isinstance(layer.entries, GatedEntries):
            readers.setdefault(id(layer.entries.shared_input), []).append(layer.entries)
    for group in readers.values():
        is_open = [entries for entries in group if entries.is_open]
        none = group[0].columns[:0]
        columns = torch.unique(torch.cat([none, *(entries.columns for entries in is_open)]))
        group[0].shared_input.set_columns(columns, len(is_open))
        for entries in is_open:
            entries.reindex()
