"""What a training step of a vision transformer and of a causal language model costs beside the frozen limit.

    python -m benchmarks.cost.step_cost_kinds  # some 10 minutes on one idle core

CPU time of the process, one thread; a round runs one step of each method in random order, and the ratios are taken
within a round, so that a busy machine slows both sides alike. The frozen limit is the least that any training below the
head costs: forward, and gradients of all inputs down to that of the lowest block, none of weights. (Sparse training
does not need the gradient of the lowest block's own input, so it starts with a small credit.)
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer, logging

import taskedge as te
from benchmarks.record import figure, show, write
from taskedge.demo import assets
from taskedge.forms.kernels import force_kernel

RESULTS = ("step_cost_kinds.json",)

BAR = 1.08
CALIBRATION_BATCHES = 4
KERNELS = {"taskedge, numba kernel": "numba", "taskedge, gather kernel": "gather"}
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """A model with its batches, and the module whose output the lowest block reads."""

    name: str
    setting: str
    load: Callable[[], tuple[nn.Module, list[Batch]]]
    embeddings: str


def pictures(count: int, side: int) -> tuple[nn.Module, list[Batch]]:
    """The ViT-S with a fresh head, and Fashion-MNIST drawn at ``side`` x ``side``."""
    import numpy as np
    from PIL import Image

    model = AutoModelForImageClassification.from_pretrained(assets.vit_small(print), num_labels=10)
    files = sorted((assets.fashion_mnist(print) / "train").glob("*/*.png"))
    classes = sorted({file.parent.name for file in files})
    random.Random(0).shuffle(files)
    batches = []
    for start in range(0, CALIBRATION_BATCHES * count, count):
        chosen = files[start : start + count]
        drawn = np.stack([np.asarray(Image.open(file).resize((side, side)).convert("RGB")) for file in chosen])
        pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1  # (batch, channels, side, side)
        labels = torch.tensor([classes.index(file.parent.name) for file in chosen])
        batches.append({"pixel_values": pixels.contiguous(), "labels": labels})
    return model, batches


def text(rows: int, tokens: int) -> tuple[nn.Module, list[Batch]]:
    """SmolLM2-135M, and movie reviews one after the other, cut into rows."""
    folder = assets.smollm2(print)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reviews = "\n".join(row for row, _ in assets.read_rows(assets.movie_reviews(print))[:600])
    ids = torch.tensor(tokenizer(reviews)["input_ids"][: CALIBRATION_BATCHES * rows * tokens])
    batches = [{"input_ids": part, "labels": part} for part in ids.view(-1, rows, tokens)]
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), batches


WORKLOADS = [
    Workload("ViT-S at 112", "16 images of 112 x 112 (65 tokens)", lambda: pictures(16, 112), "dinov2.embeddings"),
    Workload("ViT-S at 224", "8 images of 224 x 224 (257 tokens)", lambda: pictures(8, 224), "dinov2.embeddings"),
    Workload("SmolLM2-135M", "4 x 128 tokens, causal loss", lambda: text(4, 128), "model.embed_tokens"),
]


def step_of(model: nn.Module, batch: Batch, kernel: str | None) -> Callable[[], None]:
    """One training step: forward, backward, and AdamW (fused, as the Hugging Face Trainer's) where something trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None

    def step() -> None:
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        with force_kernel(kernel or "numba"):
            model(**batch).loss.backward()
        if optimizer is not None:
            optimizer.step()

    return step


def frozen_limit(model: nn.Module, embeddings: str, head: list[str]) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
    model.get_submodule(embeddings).register_forward_hook(lambda _, given, output: output.requires_grad_())
    return model.train()


def measure(workload: Workload, rounds: int, discard: int) -> tuple[list[dict[str, Any]], str]:
    """Figures of one workload, and what was trained."""
    torch.manual_seed(0)
    model, batches = workload.load()
    support = te.select(model, batches, per_neuron=1)
    limit = copy.deepcopy(model)
    ours = te.install(model, support).train()
    head = [name for name, parameter in ours.named_parameters() if parameter.requires_grad and "entries" not in name]
    steps = {"frozen limit": step_of(frozen_limit(limit, workload.embeddings, head), batches[0], None)}
    steps |= {name: step_of(ours, batches[0], kernel) for name, kernel in KERNELS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    draw = random.Random(0)
    for turn in range(-discard, rounds):
        for name in draw.sample(list(steps), len(steps)):
            start = time.process_time()
            steps[name]()
            if turn >= 0:
                seconds[name].append(time.process_time() - start)
    figures = []
    for name in KERNELS:
        ratios = [own / least for own, least in zip(seconds[name], seconds["frozen limit"], strict=True)]
        bar = BAR if name == "taskedge, numba kernel" else None
        figures.append(figure(f"{workload.name}, step: {name} / frozen limit", ratios, bar=bar))
    figures += [figure(f"{workload.name}, step: {name}", taken, unit="s") for name, taken in seconds.items()]
    return figures, str(support)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--discard", type=int, default=2, help="rounds before, not counted")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    figures: list[dict[str, Any]] = []
    supports = {}
    for workload in WORKLOADS:
        found, supports[workload.name] = measure(workload, arguments.rounds, arguments.discard)
        figures += found
        show(found)
    settings = "; ".join(f"{workload.name}: {workload.setting}" for workload in WORKLOADS)
    setting = (
        f"fp32, one thread, training mode, one entry per neuron of all linears of the blocks, fused AdamW; {settings}"
    )
    write(
        "cost",
        "step_cost_kinds",
        {"setting": setting, "supports": supports, "rounds": arguments.rounds, "figures": figures},
    )


if __name__ == "__main__":
    main()
