"""The export ``lora``: a PEFT folder that every reader of LoRA understands in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskedge.delta.interop.export import ADAPTER, Source, exports
from taskedge.delta.interop.lora_rank import lora_ranks, vllm_text
from taskedge.delta.interop.peft_export import changes_of, write_adapter
from taskedge.delta.interop.peft_layouts import Layout, lora
from taskedge.delta.interop.read_back import adapter_reader
from taskedge.errors import InputError

VLLM_HEAD = "vLLM rejects adapters with modules_to_save: serve it the merged folder"


@exports(
    "lora", makes=ADAPTER, loads="peft.PeftModel.from_pretrained(base_model, {path!r})", reads=adapter_reader,
    tolerance=1e-5,
)  # fmt: skip
def lora_folder(source: Source, path: Path, *, max_rank: int | None = None) -> dict[str, Any]:
    """A PEFT LoRA folder of one rank, with alpha equal to it, for peft, vLLM and llama.cpp's converter.

    Raises:
        InputError: the delta changes no linear; a linear needs more than ``max_rank``; PEFT cannot save a module that
            was trained in full.
    """
    checked_ranks(source, max_rank)
    changes = changes_of(source)
    layout: Layout = lora(changes, keep_scale=False)
    details = write_adapter(source, path, changes, "lora", layout)
    details |= {"rank": layout.config["r"], "served": vllm_text(layout.config["r"])}
    if details["modules_to_save"]:
        details["note"] = VLLM_HEAD
    return details


def checked_ranks(source: Source, max_rank: int | None) -> dict[str, int]:
    """Return the rank of every linear.

    Raises:
        InputError: a linear needs more than ``max_rank``.
    """
    ranks = lora_ranks(source.delta)
    over = [name for name, rank in ranks.items() if max_rank is not None and rank > max_rank]
    if over:
        worst = max(over, key=lambda name: ranks[name])
        raise InputError(
            f"{len(over)} of {len(ranks)} linears need a rank over {max_rank}, {worst!r} the most ({ranks[worst]}): "
            f"raise --max-rank, or tune with --columns {max_rank} or --max-rows {max_rank}, which make no higher rank"
        )
    return ranks
