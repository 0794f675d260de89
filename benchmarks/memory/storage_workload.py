"""What the benchmarks of held bases share: the models, how they are trained, and what a process holds."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import taskedge as te
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.demo import assets
from taskedge.profiling.process_memory import return_freed_memory

ROWS, TOKENS = 8, 64
SETTING = (
    f"batches of {ROWS} x {TOKENS} random tokens, one thread, one entry per neuron of the linears in the blocks, "
    "AdamW, portable kernel; freed tensors go back to the system at once"
)
Batch = dict[str, torch.Tensor]


FOLDERS: dict[str, Callable[..., Path]] = {"MiniLM-L6": assets.minilm, "SmolLM2-135M": assets.smollm2}


def load(folder: Path, **options: Any) -> nn.Module:
    """A classifier of two classes for an encoder, a language model else."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if config.model_type == "bert":
        auto, options = transformers.AutoModelForSequenceClassification, {"num_labels": 2, **options}
    else:
        auto = transformers.AutoModelForCausalLM
    model: nn.Module = auto.from_pretrained(folder, dtype=torch.float32, **options)
    return model


def first_pass(model: nn.Module) -> None:
    """A forward pass over a few tokens."""
    given = {key: value[:1, :8] if value.dim() > 1 else value[:1] for key, value in batch(model).items()}
    with torch.inference_mode():
        model.eval()(**given)


def quiet() -> None:
    """One thread, no reports, and memory that is given back."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return_freed_memory()


def batch(model: nn.Module) -> Batch:
    ids = torch.randint(1000, 20000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    labels = ids if "CausalLM" in type(model).__name__ else torch.arange(ROWS) % 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def training(model: nn.Module, how: str) -> Callable[[], None]:
    """A step of training on the model, its base held as ``how`` says."""
    given = batch(model)
    if how == "int8":
        set_weight_storage(model, how)
    support = te.select(model, [given], per_neuron=1)
    if how == "mmap":
        set_weight_storage(model, how)
    te.install(model, support).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(**given).loss.backward()
        optimizer.step()

    return step


def memory() -> dict[str, int]:
    """Bytes of this process by the kernel's words for them: Rss, Pss, Private_Dirty, Private_Clean and others."""
    gc.collect()
    told = Path("/proc/self/smaps_rollup").read_text()
    return {name: int(kilobytes) * 1024 for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB", told, re.MULTILINE)}
