"""What a training step of an encoder-decoder costs beside the frozen limit.

    python -m benchmarks.cost.step_cost_t5  # some 5 minutes on one busy core

Random weights of the shape of flan-t5-small (77 M parameters): times do not depend on their values. CPU time of the
process, one thread; a round runs one step of each method in random order, and the ratios are taken within a round. The
frozen limit is the least that any training in the blocks costs: forward, and gradients of all inputs down to those of
the lowest blocks of encoder and decoder, none of weights.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from typing import Any

import torch
import transformers
from torch import nn

import taskedge as te
from benchmarks.cost.step_cost_kinds import KERNELS, Batch, step_of
from benchmarks.record import figure, show, write
from taskedge.backbone.label_loss import use_label_loss

RESULTS = ("step_cost_t5.json",)

BAR = 1.08
ROWS, SOURCE, TARGET = 8, 128, 32
SETTING = (
    f"random weights of the shape of flan-t5-small, fp32, {ROWS} rows of {SOURCE} source and {TARGET} target tokens, "
    "loss of labeled positions, one entry per neuron of all linears of the blocks, cross-attention included, fused "
    "AdamW; one thread, training mode, on a machine with other work"
)


def flan_t5_small() -> nn.Module:
    """Return a model of the shape of flan-t5-small, with the loss of labeled positions."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=32_128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    model: nn.Module = transformers.T5ForConditionalGeneration(config)
    if not use_label_loss(model, print):
        raise RuntimeError("the model keeps the loss of transformers")
    return model


def batch_of(seed: int) -> Batch:
    """Return rows of source and target tokens without padding."""
    draw = torch.Generator().manual_seed(seed)
    source, target = (torch.randint(5, 32_000, (ROWS, length), generator=draw) for length in (SOURCE, TARGET))
    return {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": target}


def frozen_limit(model: nn.Module) -> nn.Module:
    """Freeze all, and let gradients flow down to the lowest blocks of both stacks."""
    model.requires_grad_(False)
    for stack in ("encoder", "decoder"):
        embed = model.get_submodule(f"{stack}.embed_tokens")
        embed.register_forward_hook(lambda _, given, output: output.detach().requires_grad_())
    return model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--discard", type=int, default=2, help="rounds before, not counted")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = flan_t5_small()
    batch = batch_of(0)
    support = te.select(model, [batch_of(seed) for seed in (1, 2)], per_neuron=1)
    limit = frozen_limit(copy.deepcopy(model))
    ours = te.install(model, support, trainable=[]).train()
    steps = {"frozen limit": step_of(limit, batch, None)}
    steps |= {name: step_of(ours, batch, kernel) for name, kernel in KERNELS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    draw = random.Random(0)
    for turn in range(-arguments.discard, arguments.rounds):
        for name in draw.sample(list(steps), len(steps)):
            start = time.process_time()
            steps[name]()
            if turn >= 0:
                seconds[name].append(time.process_time() - start)
    figures: list[dict[str, Any]] = []
    for name in KERNELS:
        ratios = [own / least for own, least in zip(seconds[name], seconds["frozen limit"], strict=True)]
        bar = BAR if name == "taskedge, numba kernel" else None
        figures.append(figure(f"flan-t5-small, step: {name} / frozen limit", ratios, bar=bar))
    figures += [figure(f"flan-t5-small, step: {name}", taken, unit="s") for name, taken in seconds.items()]
    show(figures)
    result = {"setting": SETTING, "support": str(support), "rounds": arguments.rounds, "figures": figures}
    write("cost", "step_cost_t5", result)


if __name__ == "__main__":
    main()
