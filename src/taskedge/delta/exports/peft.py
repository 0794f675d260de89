"""PEFT: an adapter folder that Hugging Face's peft loads onto the base.

No form of peft's holds any support as it is, so each of the three below says what it costs:

    supertuning   flat positions and *relative* values; every linear carries the same share of its entries, so linears
                  with a smaller share are padded with zeros at unused positions
    shira         the same, where every linear carries r·(in + out) entries
    lora          B·A with one column of B per distinct input that the linear's entries read (or one row of A per
                  distinct neuron, where these are fewer): exact and unpadded, but dense; the only one that takes Conv1D

Sources: peft 0.21's ``tuners/supertuning`` (arXiv 2607.09287), ``tuners/shira`` (arXiv 2406.13175) and ``tuners/lora``;
the padding, and the exact factorisation of a sparse change, are ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.linears import linears
from taskedge.delta.apply import applied_to
from taskedge.delta.exports import ADAPTER, Source, exports
from taskedge.errors import InputError, UnknownName

HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""The modules that peft saves whole for a task type, asked or not: matched by the end of their names."""


@dataclass(frozen=True)
class Change:
    """What the delta changes in one linear, relative to the base.

    Attributes:
        shape: (out, in).
        rows, columns: int64 [n], sorted by row and then column.
        relative: float32 [n], the applied weight less the base's.
        plain: whether the layer is an ``nn.Linear``, which alone the sparse forms take.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    relative: Tensor
    plain: bool

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Layout:
    """One form of adapter: its config keys, tensors by name, and how many numbers beyond the entries it holds."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    padded: int


@exports("peft", makes=ADAPTER, loads="peft.PeftModel.from_pretrained(base_model, {path!r})")
def peft(source: Source, path: Path, *, peft_type: str | None = None) -> dict[str, Any]:
    """A PEFT adapter folder; `--peft-type` is by default the sparse form that needs less padding.

    Raises:
        InputError: the delta has no entries; the chosen form cannot hold them, or a parameter that was trained whole.
        UnknownName: a type that is none of :data:`LAYOUTS`.
    """
    changes = _changes(source)
    chosen, layout = _choose(changes, peft_type)
    task_type = _task_type(source.model)
    whole = _modules_to_save(source, changes, task_type)
    state = source.model.state_dict()
    tensors = dict(layout.tensors)
    for module in whole:
        tensors |= {name: tensor for name, tensor in state.items() if name.startswith(f"{module}.")}
    config = {
        "peft_type": chosen.upper(),
        "task_type": task_type,
        "auto_mapping": None if task_type else _auto_mapping(source.model),
        "base_model_name_or_path": source.base or None,
        "inference_mode": True,
        "target_modules": "|".join(re.escape(name) for name in changes),
        "modules_to_save": whole or None,
        **layout.config,
    }
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    stored = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, path / "adapter_model.safetensors", {"format": "pt"})
    (path / ADAPTER.marker).write_text(json.dumps(config, indent=2) + "\n")  # type: ignore[operator]
    entries = sum(len(change.rows) for change in changes.values())
    return {"peft_type": chosen, "entries": entries, "padded": layout.padded, "modules_to_save": whole}


def supertuning(changes: dict[str, Change]) -> Layout:
    """Flat positions and relative values, as many in every linear as its size times one share.

    Raises:
        InputError: a linear is no ``nn.Linear``.
    """
    _only_plain(changes, "supertuning")
    sparsity = 1 - max(len(change.rows) / change.size for change in changes.values())

    def count(change: Change) -> int:
        return int(change.size * (1 - sparsity))  # as peft counts, rounding and all

    while any(count(change) < len(change.rows) for change in changes.values()):
        sparsity = math.nextafter(sparsity, -1.0)
    config = {"sparsity": sparsity, "r": None, "save_precomputed_indices": True}
    return _padded(changes, count, config, "supertuning_values", "supertuning_indices", _flat)


def shira(changes: dict[str, Change]) -> Layout:
    """Rows, columns and relative values, ``r·(in + out)`` of them in every linear.

    Raises:
        InputError: a linear is no ``nn.Linear``, or too small to hold as many entries as another needs.
    """
    _only_plain(changes, "shira")
    r = max(math.ceil(len(change.rows) / sum(change.shape)) for change in changes.values())
    for name, change in changes.items():
        if r * sum(change.shape) > change.size:
            raise InputError(
                f"SHiRA holds r·(in + out) entries in every linear, and with the r={r} that this delta needs that is "
                f"more than linear {name!r} has ({list(change.shape)}): export with peft_type='supertuning'"
            )
    config = {"r": r, "mask_type": "random"}  # the mask is replaced by the indices when the adapter is loaded
    return _padded(changes, lambda change: r * sum(change.shape), config, "shira_weight", "shira_indices", _pairs)


def lora(changes: dict[str, Change]) -> Layout:
    """The change as an exact product B·A of rank min(distinct columns, distinct rows)."""
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    held = 0
    for name, change in changes.items():
        b, a = _factors(change)
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        ranks[f"^{re.escape(name)}$"] = a.shape[0]
        held += a.numel() + b.numel() - len(change.rows)
    highest = max(ranks.values())
    config = {
        "r": highest,
        "rank_pattern": ranks,
        "lora_alpha": highest,
        "alpha_pattern": ranks,  # alpha / r is 1 everywhere
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": not any(change.plain for change in changes.values()),
    }
    return Layout(config, tensors, held)


LAYOUTS: dict[str, Callable[[dict[str, Change]], Layout]] = {"supertuning": supertuning, "shira": shira, "lora": lora}


def _choose(changes: dict[str, Change], peft_type: str | None) -> tuple[str, Layout]:
    """The layout asked for; else LoRA where no sparse form will do, else the sparse one with less padding."""
    if peft_type is not None:
        if peft_type not in LAYOUTS:
            raise UnknownName("PEFT type", peft_type, LAYOUTS)
        return peft_type, LAYOUTS[peft_type](changes)
    if not all(change.plain for change in changes.values()):
        return "lora", lora(changes)
    layouts = {"supertuning": supertuning(changes)}
    with suppress(InputError):  # it may have no room for its padding somewhere; the other one always has
        layouts["shira"] = shira(changes)
    name = min(layouts, key=lambda name: layouts[name].padded)
    return name, layouts[name]


def _changes(source: Source) -> dict[str, Change]:
    before = applied_to(source.model)
    assert before is not None  # export() has applied it
    layers = linears(source.model)
    changes = {}
    for name, entries in source.delta.linears.items():
        if not len(entries):
            continue
        now = layers[name].weight[entries.rows, entries.columns].cpu().double()
        relative = (now - before.entries[name].cpu().double()).float()
        plain = isinstance(layers[name].module, nn.Linear)
        changes[name] = Change(entries.shape, entries.rows, entries.columns, relative, plain)
    if not changes:
        raise InputError("the delta has no entries, so there is nothing for PEFT to adapt: merge it instead")
    return changes


def _only_plain(changes: dict[str, Change], kind: str) -> None:
    other = next((name for name, change in changes.items() if not change.plain), None)
    if other is not None:
        raise InputError(
            f"peft's {kind} takes nn.Linear only, and {other!r} is none (a Conv1D, as in GPT-2): "
            "export with peft_type='lora', which is exact too"
        )


def _padded(
    changes: dict[str, Change],
    count: Callable[[Change], int],
    config: dict[str, Any],
    values: str,
    places: str,
    form: Callable[[Change, Tensor], Tensor],
) -> Layout:
    """Values and positions of every linear, filled up to its count with zeros at the first unused positions."""
    tensors: dict[str, Tensor] = {}
    padded = 0
    for name, change in changes.items():
        taken = change.rows * change.shape[1] + change.columns
        more = count(change) - len(taken)
        free = torch.ones(change.size, dtype=torch.bool)
        free[taken] = False
        flat = torch.cat([taken, free.nonzero()[:more, 0]])
        tensors[f"{name}.{values}"] = torch.cat([change.relative, torch.zeros(more)])
        tensors[f"{name}.{places}"] = form(change, flat)
        padded += more
    return Layout(config, tensors, padded)


def _flat(change: Change, flat: Tensor) -> Tensor:
    """int32 [n]: as peft stores them."""
    if change.size > 2**31:
        raise InputError(f"peft counts positions in 32 bits, and a linear of {list(change.shape)} has more")
    return flat.int()


def _pairs(change: Change, flat: Tensor) -> Tensor:
    """int32 [2, n]: rows and columns."""
    return torch.stack([flat // change.shape[1], flat % change.shape[1]]).int()


def _factors(change: Change) -> tuple[Tensor, Tensor]:
    """B [out, rank] and A [rank, in], fp32, whose product is the change: every entry of it is one number times one."""
    out, inputs = change.shape
    used, column = torch.unique(change.columns, return_inverse=True)
    neurons, row = torch.unique(change.rows, return_inverse=True)
    rank = min(len(used), len(neurons))
    b, a = torch.zeros(out, rank), torch.zeros(rank, inputs)
    if rank == len(used):
        a[torch.arange(rank), used] = 1
        b[change.rows, column] = change.relative
    else:
        b[neurons, torch.arange(rank)] = 1
        a[row, change.columns] = change.relative
    return b, a


def _task_type(model: nn.Module) -> str | None:
    """peft's word for what the model is for; it decides which heads peft saves whole."""
    name = type(model).__name__
    kinds = {
        "ForSequenceClassification": "SEQ_CLS",
        "ForTokenClassification": "TOKEN_CLS",
        "ForQuestionAnswering": "QUESTION_ANS",
        "ForCausalLM": "CAUSAL_LM",
        "LMHeadModel": "CAUSAL_LM",
    }
    return next((kind for end, kind in kinds.items() if name.endswith(end)), None)


def _auto_mapping(model: nn.Module) -> dict[str, str]:
    """Where peft's ``AutoPeftModel`` finds the class of a base that no task type stands for."""
    return {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}


def _modules_to_save(source: Source, changes: dict[str, Change], task_type: str | None) -> list[str]:
    """Names of the modules that hold the parameters which were trained whole, and the heads peft adds by itself.

    Raises:
        InputError: peft cannot save one of them, as it saves whole modules only.
    """
    modules = [name for name, _ in source.model.named_modules() if name]
    heads = [name for name in modules if name.endswith(HEADS.get(task_type or "", ()))]
    found = dict.fromkeys(heads)
    for parameter in source.delta.whole:
        owner = parameter.rpartition(".")[0]
        if not any(owner == head or owner.startswith(f"{head}.") for head in heads):
            found[owner] = None
    for name in found:
        inside = [linear for linear in changes if linear == name or linear.startswith(f"{name}.")]
        if not name or inside:
            raise InputError(
                "peft saves whole modules, and "
                + (f"{name!r} carries entries too ({inside[0]!r})" if name else "a parameter of the model itself")
                + ": this delta has no PEFT form, merge it or export a patch"
            )
        also = [other for other in modules if other.endswith(name) and other not in found]
        if also:
            raise InputError(f"peft finds modules by the end of their names, and would take {also[0]!r} for {name!r}")
    return list(found)
