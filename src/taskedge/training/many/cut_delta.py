"""From trained entries and frozen gates to one delta for several tasks: what no task uses is cut.

Own entries go where the task's gate is closed. Shared entries go where every task's gate is open. A row in which
neither has entries needs no gate. The networks of the tasks stay the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.backbone.fingerprint import digest
from taskedge.delta.delta import Delta, Head, LinearDelta, Provenance
from taskedge.delta.gated_rows import GatedRows, needed_rows
from taskedge.training.many.gated_model import GatedLinear, GatedModel, TrainedEntries


@dataclass(frozen=True)
class Cut:
    """Numbers of what was kept and of what there was.

    Attributes:
        shared_entries: (kept, trained) shared entries.
        own_entries: (kept, trained) own entries of each task.
        own_rows: (rows with an open gate, rows) of each task.
    """

    shared_entries: tuple[int, int]
    own_entries: tuple[tuple[int, int], ...]
    own_rows: tuple[tuple[int, int], ...]

    def lines(self, names: Sequence[str]) -> list[str]:
        """Return the numbers as lines of text."""
        kept, trained = self.shared_entries
        lines = [f"shared: {kept:,} of {trained:,} entries are used by some task, the others are cut"]
        for name, (kept, trained), (opened, rows) in zip(names, self.own_entries, self.own_rows, strict=True):
            lines.append(
                f"{name}: {opened:,} of {rows:,} rows are its own; {kept:,} of its {trained:,} entries are used, the "
                "others are cut"
            )
        return lines


@torch.no_grad()
def cut_delta(model: GatedModel, heads: Mapping[str, Head], provenance: Provenance) -> tuple[Delta, Cut]:
    """Return the delta of all tasks, and what was cut.

    Args:
        model: trained; its gates are read where they are now.
        heads: head and provenance of each task, in the order of the model's tasks.
        provenance: of the whole delta.
    """
    layers = model.by_name()
    gates = [
        {name: _useful(opened, layers[name], task) for name, opened in model.row_gates(task).items()}
        for task in range(len(heads))
    ]
    shared: dict[str, LinearDelta] = {}
    for name, layer in layers.items():
        open_gates = [own[name] for own in gates if bool(own[name].any())]
        kept = needed_rows(layer.shared.out, open_gates, len(heads))[layer.shared.rows]
        rows, columns = layer.shared.rows[kept], layer.shared.columns[kept]
        if len(rows):
            shared[name] = LinearDelta(
                layer.layer.shape, rows, columns, _values(layer, layer.shared)[kept], layer.layer.storage_dtype,
                digest(layer.layer.read(rows, columns)),
            )  # fmt: skip
    made = {}
    for task, (head_name, head) in enumerate(heads.items()):
        gated = {
            name: _gated(layer, layer.own_entries(task), gates[task][name], shared.get(name))
            for name, layer in layers.items()
            if bool(gates[task][name].any())
        }
        made[head_name] = Head(head.full_parameters, head.provenance, gated)
    cut = Cut(
        (sum(map(len, shared.values())), sum(len(layer.shared.rows) for layer in layers.values())),
        tuple(
            (sum(map(len, head.gated.values())), sum(len(layer.own_entries(task).rows) for layer in layers.values()))
            for task, head in enumerate(made.values())
        ),
        tuple(
            (sum(int(each.sum()) for each in own.values()), sum(len(each) for each in own.values())) for own in gates
        ),
    )
    return Delta(shared, {}, provenance, heads=made), cut


def _useful(opened: Tensor, layer: GatedLinear, task: int) -> Tensor:
    """Return the gates without those of rows in which neither the task nor all tasks have entries."""
    has_entries = torch.zeros_like(opened)
    has_entries[layer.shared.rows] = True
    has_entries[layer.own_entries(task).rows] = True
    return opened & has_entries


def _values(layer: GatedLinear, entries: TrainedEntries) -> Tensor:
    """Return the absolute values of entries."""
    return layer.layer.read(entries.rows, entries.columns) + entries.differences


def _gated(layer: GatedLinear, own: TrainedEntries, opened: Tensor, shared: LinearDelta | None) -> GatedRows:
    kept = opened[own.rows]
    part = GatedRows(
        layer.layer.shape, opened, own.rows[kept], own.columns[kept], _values(layer, own)[kept],
        layer.layer.storage_dtype, "",
    )  # fmt: skip
    rows, columns, _ = part.entries(shared)
    return GatedRows(
        part.shape, opened, part.rows, part.columns, part.values, part.base_dtype,
        digest(layer.layer.read(rows, columns)),
    )  # fmt: skip
