"""A base whose linears have shared entries, entries of each task, and gates by row: what ``tune-many`` trains.

The output of a linear for task t is ``y = W·x + G_t∘(Δ_t·x) + (1 - G_t)∘(Δ_0·x)`` with a gate G for each row. The
base's product runs as always; a hook adds the entries beside it. Source: this project, after InterroGate (arXiv
2402.16848).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from taskedge.backbone.layers import Linear, LinearAdapter, as_tokens, first_input, linears
from taskedge.errors import InputError
from taskedge.forms.install import step_sizes
from taskedge.selection.support import Support
from taskedge.training.many.row_gates import START, hard_gates
from taskedge.training.many.trunk_cost import TrunkCost

Mode = Literal["base", "shared", "own", "gated"]
"""Which entries count: none; the shared ones in all rows; those of the task in all rows; those that gates choose."""


class TrainedEntries(nn.Module):
    """Entries of one linear as differences ``step·offset`` from the base.

    Args:
        name: of the linear.
        support: entries of all linears; it may have none for this one.
        out: rows of the linear.
    """

    rows: Tensor
    columns: Tensor
    step: Tensor

    def __init__(self, name: str, support: Support, out: int) -> None:
        super().__init__()
        nothing = torch.empty(0, dtype=torch.int64)
        linear = support.linears.get(name)
        self.out = out
        self.register_buffer("rows", nothing if linear is None else linear.rows)
        self.register_buffer("columns", nothing if linear is None else linear.columns)
        step = torch.empty(0)
        if linear is not None:
            measured = linear.input_rms is not None
            step = step_sizes(name, linear, neuron_share=support.neuron_share) if measured else torch.ones(len(linear))
        self.register_buffer("step", step)
        self.offsets = nn.Parameter(torch.zeros(len(self.rows)))

    @property
    def differences(self) -> Tensor:
        """float32 [n]."""
        return self.step * self.offsets

    def product(self, x: Tensor, gates: Tensor | None) -> Tensor:
        """Return the product [tokens, out] of inputs [tokens, in], with each row times its gate [out]."""
        factors = self.differences if gates is None else self.differences * gates[self.rows]
        parts = x.index_select(1, self.columns) * factors
        return parts.new_zeros(len(x), self.out).index_add(1, self.rows, parts)


@dataclass
class Present:
    """The task that runs now, which entries count, and whether gates are frozen (they then have no gradient)."""

    task: int = 0
    mode: Mode = "base"
    frozen: bool = False


class GatedLinear(nn.Module):
    """Shared entries, entries of each task and the gates of one linear.

    Args:
        layer: the linear.
        block: index of its block.
        shared: shared support of all linears.
        own: support of each task.
    """

    def __init__(self, layer: Linear, block: int, shared: Support, own: Sequence[Support]) -> None:
        super().__init__()
        out, _ = layer.shape
        self.layer, self.block = layer, block
        self.shared = TrainedEntries(layer.name, shared, out)
        self.own = nn.ModuleList(TrainedEntries(layer.name, each, out) for each in own)
        self.alpha = nn.Parameter(torch.full((len(own), out), START))

    def own_entries(self, task: int) -> TrainedEntries:
        """Return the entries of one task."""
        return cast(TrainedEntries, self.own[task])

    def change(self, x: Tensor, present: Present, block_gate: Tensor) -> Tensor:
        """Return what is added to the base's output for inputs [tokens, in], as [tokens, out]."""
        own = self.own_entries(present.task)
        if present.mode == "shared":
            return self.shared.product(x, None)
        if present.mode == "own":
            return own.product(x, None)
        gates = hard_gates(self.alpha[present.task]) * block_gate
        if present.frozen:
            gates = gates.detach()
        return own.product(x, gates) + self.shared.product(x, 1 - gates)


class GatedModel(nn.Module):
    """The changes of a base by several tasks, and hooks that add them.

    Args:
        model: the base; other models may share its modules.
        shared: the support of all tasks.
        own: the support of each task.

    Attributes:
        present: the task and the mode of the next forward pass.
        cost: of the model's blocks.
        block_logits: [tasks, blocks]: a task has rows of its own only in blocks whose logit is above 0.

    Raises:
        InputError: an entry lies in a layer that is no plain linear or in no block.
    """

    def __init__(self, model: nn.Module, shared: Support, own: Sequence[Support]) -> None:
        super().__init__()
        layers = linears(model)
        self.cost = TrunkCost.of_model(model)
        self.present = Present()
        self.layers = nn.ModuleDict()
        names = [name for name in layers if any(name in support.linears for support in (shared, *own))]
        for name in names:
            layer = layers[name]
            if (
                not isinstance(layer.adapter, LinearAdapter)
                or layer.is_read_only
                or layer.stored.dtype != torch.float32
            ):
                raise InputError(f"{name!r} is no linear in fp32 that can be written to: tune-many trains these only")
            gated = GatedLinear(layer, self.cost.block_of(name), shared, own)
            self.layers[name.replace(".", "/")] = gated
            layer.module.register_forward_hook(self._hook_of(gated), with_kwargs=True)
        self.block_logits = nn.Parameter(torch.full((len(own), len(self.cost.names)), START))

    def by_name(self) -> dict[str, GatedLinear]:
        """Return the changed linears by their names in the model."""
        return {key.replace("/", "."): cast(GatedLinear, layer) for key, layer in self.layers.items()}

    @property
    def row_logits(self) -> list[nn.Parameter]:
        """The logits of the row gates, [tasks, out] for each linear."""
        return [layer.alpha for layer in self.by_name().values()]

    @property
    def gate_parameters(self) -> list[nn.Parameter]:
        """The logits of all gates."""
        return [self.block_logits, *self.row_logits]

    @property
    def value_parameters(self) -> list[nn.Parameter]:
        """The offsets of all entries."""
        gates = {id(gate) for gate in self.gate_parameters}
        return [parameter for parameter in self.parameters() if id(parameter) not in gates]

    @torch.no_grad()
    def row_gates(self, task: int) -> dict[str, Tensor]:
        """Return bool [out] by linear: the rows in which a task has its own entries now."""
        blocks = self.block_logits[task] > 0
        return {name: (layer.alpha[task] > 0) & blocks[layer.block] for name, layer in self.by_name().items()}

    def _hook_of(self, gated: GatedLinear) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if self.present.mode == "base":
                return None
            x = as_tokens(first_input(args, kwargs))
            block_gate = hard_gates(self.block_logits[self.present.task, gated.block])
            return output + gated.change(x, self.present, block_gate).view(output.shape)

        return hook
