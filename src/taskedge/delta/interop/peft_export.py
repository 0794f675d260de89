"""The export ``peft``: an adapter folder for Hugging Face's peft."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskedge.backbone.experts import ExpertLinear
from taskedge.backbone.layers import ConvAdapter, EmbeddingAdapter, linears
from taskedge.delta.apply import applied_to
from taskedge.delta.interop.export import ADAPTER, Source, exports
from taskedge.delta.interop.peft_layouts import LAYOUTS, Change, Layout, lora, shira, supertuning
from taskedge.delta.interop.read_back import adapter_reader
from taskedge.errors import InputError, UnknownName
from taskedge.selection.support import columns_of_every_row

HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""Modules that peft always saves completely for a task type, by the end of their names."""


@exports("peft", makes=ADAPTER, loads="peft.PeftModel.from_pretrained(base_model, {path!r})", reads=adapter_reader)
def peft(source: Source, path: Path, *, peft_type: str | None = None) -> dict[str, Any]:
    """A PEFT adapter folder; `--peft-type` is `lora` for whole columns, else the sparse type that needs less padding.

    Raises:
        InputError: the delta has no entries, or the type cannot represent them or a parameter that was trained in full.
        UnknownName: the type is not in :data:`LAYOUTS`.
    """
    changes = changes_of(source)
    chosen, layout = _choose(changes, peft_type)
    return write_adapter(source, path, changes, chosen, layout)


def write_adapter(
    source: Source, path: Path, changes: dict[str, Change], peft_type: str, layout: Layout
) -> dict[str, Any]:
    """Write the adapter folder of a layout, with the modules that were trained in full.

    Raises:
        InputError: PEFT cannot save one of these modules.
    """
    task_type = _task_type(source.model)
    saved_modules = _modules_to_save(source, changes, task_type)
    state = source.model.state_dict()
    tensors = dict(layout.tensors)
    for module in saved_modules:
        tensors |= {name: tensor for name, tensor in state.items() if name.startswith(f"{module}.")}
    config = {
        "peft_type": peft_type.upper(),
        "task_type": task_type,
        "auto_mapping": None if task_type else _auto_mapping(source.model),
        "base_model_name_or_path": source.base or None,
        "inference_mode": True,
        "target_modules": "|".join(re.escape(name) for name in changes),
        "modules_to_save": saved_modules or None,
        **layout.config,
    }
    from safetensors.torch import save_file

    stored = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, path / "adapter_model.safetensors", {"format": "pt"})
    (path / ADAPTER.marker).write_text(json.dumps(config, indent=2) + "\n")  # type: ignore[operator]
    products = len(source.delta.low_rank)
    return {
        "peft_type": peft_type,
        "entries": source.delta.num_entries,
        **({"low_rank": products} if products else {}),
        "padded": layout.padded,
        "modules_to_save": saved_modules,
    }


def _choose(changes: dict[str, Change], peft_type: str | None) -> tuple[str, Layout]:
    """Return the requested layout; by default the sparse one with less padding, or LoRA if none is possible.

    Entries in all rows of a few columns are also LoRA by default: its rank is their number, and any LoRA runtime runs
    it.
    """
    if peft_type is not None:
        if peft_type not in LAYOUTS:
            raise UnknownName("PEFT type", peft_type, LAYOUTS)
        return peft_type, LAYOUTS[peft_type](changes)
    if not all(change.plain and change.product is None for change in changes.values()):
        return "lora", lora(changes)
    if all(
        columns_of_every_row(change.shape[0], change.rows, change.columns) is not None for change in changes.values()
    ):
        return "lora", lora(changes)
    layouts = {"supertuning": supertuning(changes)}
    with suppress(InputError):  # a linear may be too small for its padding; supertuning always fits
        layouts["shira"] = shira(changes)
    name = min(layouts, key=lambda name: layouts[name].padded)
    return name, layouts[name]


def changes_of(source: Source) -> dict[str, Change]:
    """Return the change of every linear relative to the base, in fp32, by name.

    Raises:
        InputError: the delta changes no linear, or one expert of several that are one parameter.
    """
    before = applied_to(source.model)
    assert before is not None  # export() has applied it
    layers, changes = linears(source.model), {}
    for name in (*source.delta.linears, *source.delta.low_rank):
        if isinstance(layers[name].module, ExpertLinear):
            raise InputError(
                f"linear {name!r} is one expert of several that the model stores as one parameter, and PEFT has no "
                "adapter for a single one: merge the delta, or export a patch"
            )
        if isinstance(layers[name].adapter, EmbeddingAdapter):
            raise InputError(
                f"{name!r} is an embedding, whose entries no layout of this export can represent: merge the delta, or "
                "export a patch"
            )
    for name, entries in source.delta.linears.items():
        if not len(entries):
            continue
        if name in source.delta.low_rank:  # the weight has the product as well
            now = entries.values.to(before.entries[name].dtype)
        else:
            now = layers[name].weight[entries.rows, entries.columns]
        relative = (now.cpu().double() - before.entries[name].cpu().double()).float()
        plain = isinstance(layers[name].module, nn.Linear)
        adapter = layers[name].adapter
        kernel = adapter.kernel if isinstance(adapter, ConvAdapter) else None
        changes[name] = Change(entries.shape, entries.rows, entries.columns, relative, plain, kernel=kernel)
    none = torch.empty(0, dtype=torch.int64)
    for name, product in source.delta.low_rank.items():
        plain = isinstance(layers[name].module, nn.Linear)
        alone = Change(product.shape, none, none, none.float(), plain)
        changes[name] = replace(changes.get(name, alone), product=product)
    if not changes:
        raise InputError("the delta changes no linear, so there is nothing for PEFT to adapt: merge it instead")
    return changes


def _task_type(model: nn.Module) -> str | None:
    """Return peft's task type of the model, which decides which heads peft saves."""
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
    """Return where peft's ``AutoPeftModel`` finds the class of a base without a task type."""
    return {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}


def _modules_to_save(source: Source, changes: dict[str, Change], task_type: str | None) -> list[str]:
    """Return the modules of the parameters that were trained in full, and the heads that peft adds itself.

    Raises:
        InputError: peft cannot save one of them, because it saves complete modules only.
    """
    modules = [name for name, _ in source.model.named_modules() if name]
    heads = [name for name in modules if name.endswith(HEADS.get(task_type or "", ()))]
    result = dict.fromkeys(heads)
    for parameter in source.delta.full_parameters:
        owner = parameter.rpartition(".")[0]
        if not any(owner == head or owner.startswith(f"{head}.") for head in heads):
            result[owner] = None
    for name in result:
        inside = [linear for linear in changes if linear == name or linear.startswith(f"{name}.")]
        if not name or inside:
            raise InputError(
                "peft saves complete modules, and "
                + (f"{name!r} also has entries ({inside[0]!r})" if name else "a parameter is of the model itself")
                + ": PEFT cannot represent this delta, merge it or export a patch"
            )
        also = [other for other in modules if other.endswith(name) and other not in result]
        if also:
            raise InputError(f"peft matches modules by the end of their names, and would take {also[0]!r} for {name!r}")
    return list(result)
