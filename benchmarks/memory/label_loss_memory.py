"""Memory and time of a step of a language model with a large vocabulary, by the loss from labeled positions.

Beside it: the loss of transformers, by TaskEdge and by LoRA.

    python -m benchmarks.memory.label_loss_memory  # some 4 minutes on one core

The model has the shape of Gemma 3 270M (268 M parameters, 262,144 words, head tied to the embeddings) and random
weights: memory and time do not depend on their values. Rows have 256 tokens, of which the last quarter is the response
and has labels. Memory is the peak of the resident set over the step less that of the process with the loaded model;
each way has a process of its own, and returns freed tensors to the system as the trainer does with recomputation.
Seconds are processor time of the step, on one thread, after a step of one short row.
With `--turns N` all ways are measured in turn, N times; a ratio is of two ways of the same turn, and the results are
written after each turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from typing import Any

import torch
import transformers
from torch import nn

import taskedge as te
from benchmarks.record import figure, rerun, show, write
from taskedge.backbone.label_loss import use_label_loss
from taskedge.forms.kernels import force_kernel
from taskedge.profiling.process_memory import TIGHT_THRESHOLD_BYTES, peak_bytes, reset_peak, return_freed_memory

RESULTS = ("label_loss_memory.json",)
ROWS, TOKENS, RESPONSE = 4, 256, 64
SETTING = (
    f"random weights of the shape of Gemma 3 270M, fp32; {ROWS} x {TOKENS} tokens, the last {RESPONSE} of each "
    "row with labels; one entry per neuron, portable kernel; LoRA r=8 on all linears of the blocks by PEFT; AdamW; one "
    "thread, on a machine with other work"
)
LORA, OLD = "LoRA r=8, loss of transformers", "taskedge, loss of transformers"
NEW, RECOMPUTED = "taskedge", "taskedge, recompute blocks"
INFERENCE = "forward pass with the loss of labeled positions"
WAYS = (LORA, OLD, NEW, RECOMPUTED, INFERENCE)
BARS = {(NEW, "memory"): 0.25, (RECOMPUTED, "memory"): 0.10, (NEW, "step"): 0.60}


def gemma() -> nn.Module:
    """Return a model of the shape of Gemma 3 270M."""
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, sliding_window=512, query_pre_attn_scalar=256,
    )  # fmt: skip
    model: nn.Module = transformers.Gemma3ForCausalLM(config)
    model.config.use_cache = False
    return model


def batch_of(model: Any) -> dict[str, torch.Tensor]:
    """Return rows of prompt and response."""
    ids = torch.randint(5, model.config.vocab_size, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, : TOKENS - RESPONSE] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def measure(way: str) -> dict[str, float]:
    """Return peak bytes above the loaded model and seconds of a step, of one way in this process."""
    torch.set_num_threads(1)
    return_freed_memory(TIGHT_THRESHOLD_BYTES)
    model = gemma()
    batch = batch_of(model)
    device = torch.device("cpu")
    with torch.inference_mode():  # what libraries allocate on first use
        model(input_ids=batch["input_ids"][:1, :8])
    reset_peak(device)
    idle = peak_bytes(device)
    if way == LORA:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)  # type: ignore[arg-type]
    else:
        if way != OLD and not use_label_loss(model, print):
            raise RuntimeError("the model keeps the loss of transformers")
        calibration = {name: value[:1] for name, value in batch.items()}
        model = te.install(model, te.select(model, [calibration], per_neuron=1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train(way != INFERENCE)
    seconds = 0.0
    reset_peak(device)
    with force_kernel("gather"), te.recomputing(model, "blocks" if way == RECOMPUTED else "none"):
        for given in ({name: value[:1, -2 * RESPONSE :] for name, value in batch.items()}, batch):
            start = time.process_time()
            if way == INFERENCE:
                with torch.inference_mode():
                    model(**given)
            else:
                optimizer.zero_grad(set_to_none=True)
                model(**given).loss.backward()
                optimizer.step()
            seconds = time.process_time() - start
    return {"memory": float(peak_bytes(device) - idle), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1, help="how often each way is measured")
    parser.add_argument("--one", choices=WAYS, help="print the figures of one way as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    turns: list[dict[str, dict[str, float]]] = []
    for turn in range(arguments.turns):
        found = {}
        for way in WAYS:
            done = subprocess.run(rerun("--one", way), check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
            print(turn, way, found[way], flush=True)
        turns.append(found)
        figures = figures_of(turns)
        show(figures)
        write("memory", "label_loss_memory", {"setting": SETTING, "figures": figures})


def figures_of(turns: list[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Return each way's memory, seconds, and their ratios to those of LoRA in the same turn."""
    figures = []
    for way in WAYS:
        figures.append(figure(f"memory: {way}", [found[way]["memory"] / 2**20 for found in turns], unit="MiB"))
        figures.append(figure(f"step: {way}", [found[way]["seconds"] for found in turns], unit="s"))
        for kind, key in (("memory", "memory"), ("step", "seconds")):
            ratios = [found[way][key] / found[LORA][key] for found in turns]
            figures.append(figure(f"{kind}: {way} / {LORA}", ratios, bar=BARS.get((way, kind))))
    ratios = [found[RECOMPUTED]["memory"] / found[INFERENCE]["memory"] for found in turns]
    figures.append(figure(f"memory: {RECOMPUTED} / {INFERENCE}", ratios, bar=1.25))
    return figures


if __name__ == "__main__":
    main()
