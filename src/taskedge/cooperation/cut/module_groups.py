"""Which linears of the base are modules of a device, and how they are grouped by the input that they share.

Query, key and value read one input, so it crosses once, in one message, for all three. A *group* is the active modules
of one input. Both ends compute the groups of a pass from the same plan and the same set of active modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.protocol.bounds import short_text
from taskedge.cooperation.protocol.message import Message

MAX_MODULES = 4096
Plan = dict[str, "Module"]
"""Modules by name, in the order of the model."""


@dataclass(frozen=True, eq=False)
class Module:
    """A linear that a device trains.

    Attributes:
        name: as the cloud names it.
        shape: (out, in).
        shared_input: the first linear that reads the same input.
        rows: int64, ascending: outputs that it changes; None for all.
        columns: int64, ascending: inputs that it reads; None for all.
    """

    name: str
    shape: tuple[int, int]
    shared_input: str
    rows: Tensor | None = None
    columns: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Outputs that it changes."""
        return self.shape[0] if self.rows is None else len(self.rows)


@dataclass(frozen=True, eq=False)
class Group:
    """The active modules that read one input.

    Attributes:
        modules: in the order of the model.
        columns: int64, ascending: the inputs that one of them reads; None for all.
    """

    modules: tuple[Module, ...]
    columns: Tensor | None

    @property
    def name(self) -> str:
        """The first of its modules."""
        return self.modules[0].name

    @property
    def num_columns(self) -> int:
        """Numbers of a token that go down for it."""
        return self.modules[0].shape[1] if self.columns is None else len(self.columns)

    @cached_property
    def row_counts(self) -> list[int]:
        """Outputs that each module changes."""
        return [module.num_rows for module in self.modules]

    @property
    def num_rows(self) -> int:
        """Numbers of a token that come up for it."""
        return sum(self.row_counts)

    def gather(self, x: Tensor) -> Tensor:
        """Return the columns of an input [..., in] as [tokens, columns]."""
        matrix = x.detach().flatten(0, -2)
        return matrix if self.columns is None else matrix.index_select(1, self.columns)


def groups_of(plan: Mapping[str, Module], active: Sequence[str]) -> list[Group]:
    """Return the groups of the active modules, in the order of the model."""
    members: dict[str, list[Module]] = {}
    chosen = set(active)
    for name, module in plan.items():
        if name in chosen:
            members.setdefault(module.shared_input, []).append(module)
    groups = []
    for modules in members.values():
        columns = [module.columns for module in modules if module.columns is not None]
        union = torch.unique(torch.cat(columns)) if len(columns) == len(modules) else None
        groups.append(Group(tuple(modules), union))
    return groups


def payload_numbers(groups: Sequence[Group], tokens: int, width: int, *, trains: bool = True) -> int:
    """Return the numbers that cross in one pass: the closed form of ``docs/cut.md``.

    Args:
        groups: of the active modules, input side first.
        tokens: of the batch, with padding.
        width: of the hidden states.
        trains: whether the pass is followed by a backward pass.
    """
    forward = 2 * width + sum(group.num_columns + group.num_rows for group in groups)
    if not trains or not groups:
        return tokens * forward
    backward = width + sum(group.num_columns + group.num_rows for group in groups) - groups[0].num_columns
    return tokens * (forward + backward)


def plan_message(plan: Plan, header: Mapping[str, Any]) -> Message:
    """Return the message that brings a plan to the cloud: names, shared inputs, rows and columns."""
    tensors = {}
    for name, module in plan.items():
        for kind, index in (("rows", module.rows), ("columns", module.columns)):
            if index is not None:
                tensors[f"{kind}/{name}"] = index.to(torch.int32)
    modules = [[name, module.shared_input, *module.shape] for name, module in plan.items()]
    return Message("plan", {**header, "modules": modules}, tensors)


def read_plan(message: Message, shapes: Mapping[str, tuple[int, int]]) -> Plan:
    """Return the plan in a device's message.

    Args:
        message: What :func:`plan_message` made.
        shapes: (out, in) of every linear that can be a module, in the order of the model.

    Raises:
        CutRefused: It names a linear that there is not, or rows and columns outside of it.
    """
    stated = message.header.get("modules")
    if not isinstance(stated, list) or not 0 < len(stated) <= MAX_MODULES:
        raise CutRefused(f"a plan of {len(stated) if isinstance(stated, list) else 'no'} modules")
    plan: Plan = {}
    for entry in stated:
        if not isinstance(entry, list) or len(entry) != 4 or not all(isinstance(name, str) for name in entry[:2]):
            raise CutRefused(f"a plan with the module {short_text(entry)}")
        name, shared_input, *shape = entry
        if name not in shapes or shared_input not in shapes or tuple(shape) != shapes[name] or name in plan:
            raise CutRefused(f"a plan with the module {short_text(name)} of {short_text(shape)}, which is none here")
        if shapes[shared_input][1] != shape[1]:
            raise CutRefused(f"a plan in which {name!r} reads the input of {shared_input!r}, which has another width")
        rows = _index(message, f"rows/{name}", shape[0])
        columns = _index(message, f"columns/{name}", shape[1])
        plan[name] = Module(name, (shape[0], shape[1]), shared_input, rows, columns)
    known = {f"{kind}/{name}" for kind in ("rows", "columns") for name in plan}
    if foreign := set(message.tensors) - known:
        raise CutRefused(f"a plan with the tensor {short_text(min(foreign))}, which belongs to no module")
    return {name: plan[name] for name in shapes if name in plan}


def _index(message: Message, name: str, size: int) -> Tensor | None:
    index = message.tensors.get(name)
    if index is None:
        return None
    sound = index.dtype == torch.int32 and index.dim() == 1 and 0 < len(index) <= size
    if not sound or int(index[0]) < 0 or int(index[-1]) >= size or bool((index.diff() <= 0).any()):
        raise CutRefused(f"a plan whose {name} are not ascending numbers below {size}")
    return index.to(torch.int64)
