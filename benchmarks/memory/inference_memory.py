"""Peak memory of a training step with recomputation over that of a forward pass of the same batch.

    python -m benchmarks.memory.inference_memory          # what is not in the results; 8 minutes on one busy core
    python -m benchmarks.memory.inference_memory --again  # all
    python -m benchmarks.memory.inference_memory --again --jobs 6  # six processes at a time

SmolLM2-135M, and random weights of the shape of Gemma 3 270M. Inference is a forward pass without gradients; its loss
is that of labeled positions, as `eval` computes it. Each way has a process of its own: the peak of the resident set
over the pass or step, less that of the process with the loaded model and what libraries allocate on first use. All
return freed tensors to the system as the trainer does with recomputation. "With the base" adds the bytes of the model's
parameters to both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch
from torch import nn

import taskedge as te
from benchmarks.memory.label_loss_memory import gemma
from benchmarks.memory.storage_workload import FOLDERS, load
from benchmarks.record import figure, rerun, results, show, write
from taskedge.backbone.label_loss import use_label_loss
from taskedge.forms.kernels import force_kernel
from taskedge.profiling.process_memory import TIGHT_THRESHOLD_BYTES, peak_bytes, reset_peak, return_freed_memory

RESULTS = ("inference_memory.json",)

ROWS, TOKENS, RESPONSE = 4, 256, 64
BAR = 1.25
INFERENCE = "inference"
TRAINING, BY_ROW = "training, recompute blocks", "training, recompute blocks, micro-batch 1"
WAYS = (INFERENCE, TRAINING, BY_ROW)
MODELS = ("SmolLM2-135M", "Gemma 3 270M")
SETTING = (
    f"fp32; {ROWS} x {TOKENS} tokens, the last {RESPONSE} of each row with labels; one entry per neuron, portable "
    "kernel, AdamW; one thread, on a machine with other work"
)


def model_of(name: str) -> Any:
    """Return a model with the loss of labeled positions."""
    model: Any = gemma() if name == "Gemma 3 270M" else load(FOLDERS[name](print))
    model.config.use_cache = False
    return model


def batch_of(model: Any) -> dict[str, torch.Tensor]:
    """Return rows of prompt and response."""
    ids = torch.randint(5, 40_000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, : TOKENS - RESPONSE] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def measure(name: str, way: str) -> dict[str, float]:
    """Return peak bytes above the loaded model, of one way in this process, and the bytes of the model."""
    torch.set_num_threads(1)
    return_freed_memory(TIGHT_THRESHOLD_BYTES)
    device = torch.device("cpu")
    model = model_of(name)
    batch = batch_of(model)
    base = float(sum(parameter.nbytes for parameter in model.parameters()))
    if not use_label_loss(model, print):
        raise RuntimeError("the model keeps the loss of transformers")
    if way != INFERENCE:
        te.install(model, te.select(model, [{key: value[:1, -8:] for key, value in batch.items()}], per_neuron=1))
    optimizer: Any = None
    if way != INFERENCE:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    first = {key: value[:1, -16:] for key, value in batch.items()}
    _run(model, way, first, optimizer)  # what libraries allocate on first use, and the optimizer's state
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    reset_peak(device)
    idle = peak_bytes(device)
    _run(model, way, batch, optimizer)
    return {"peak": float(peak_bytes(device) - idle), "base": base}


def _run(model: nn.Module, way: str, batch: dict[str, torch.Tensor], optimizer: Any) -> None:
    with force_kernel("gather"):
        if way == INFERENCE:
            model.eval()
            with torch.inference_mode():
                model(**batch)
            return
        model.train()
        with te.recomputing(model, "blocks"):
            parts = split_rows(batch) if way == BY_ROW else [batch]
            labels = int((batch["labels"] != -100).sum())
            for part in parts:
                share = int((part["labels"] != -100).sum()) / labels
                (model(**part).loss * share).backward()
        optimizer.step()


def split_rows(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Return the batch row by row."""
    return [{key: value[row : row + 1] for key, value in batch.items()} for row in range(len(batch["input_ids"]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="also what is in the results already")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; memory does not depend on it")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WAY"), help="print the figures of one way as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    stored = results("memory") / "inference_memory.json"
    known: dict[str, Any] = json.loads(stored.read_text())["details"]["measured"] if stored.exists() else {}
    left = [(name, way) for name in MODELS for way in WAYS if arguments.again or way not in known.get(name, {})]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        running = {pool.submit(_in_process, *job): job for job in left}
        for done in as_completed(running):
            name, way = running[done]
            known.setdefault(name, {})[way] = done.result()
            print(name, way, done.result(), flush=True)
            figures = ratios({model: ways for model, ways in known.items() if len(ways) == len(WAYS)})
            show(figures)
            write("memory", "inference_memory", {"setting": SETTING, "figures": figures, "measured": known})


def _in_process(name: str, way: str) -> dict[str, float]:
    """Return the figures of one way, from a process of its own."""
    done = subprocess.run(rerun("--one", name, way), check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratios(measured: dict[str, dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Return the figures of the models of which all ways are measured."""
    figures = []
    for name, found in measured.items():
        figures += [figure(f"{name}: {way}", [found[way]["peak"] / 2**20], unit="MiB") for way in WAYS]
        base = found[INFERENCE]["base"]
        figures.append(figure(f"{name}: the base", [base / 2**20], unit="MiB"))
        for way in (TRAINING, BY_ROW):
            ratio = found[way]["peak"] / found[INFERENCE]["peak"]
            figures.append(figure(f"{name}: {way} / inference", [ratio], bar=BAR))
            whole = (base + found[way]["peak"]) / (base + found[INFERENCE]["peak"])
            figures.append(figure(f"{name}: {way} / inference, with the base", [whole], bar=BAR))
    return figures


if __name__ == "__main__":
    main()
