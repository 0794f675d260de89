"""A tuned language model in llama.cpp: base and adapter against ours, on 20 prompts.

    python -m benchmarks.interop.in_llama_cpp  # some ten minutes on one idle core; needs gguf and xllamacpp

The bases are SmolLM2-135M-Instruct (dequantized Q4_1) and Gemma 3 270M (dequantized Q4_K_M; its terms of use hold), in
llama.cpp with matrices of fp16. A few steps on movie reviews give the values. The bar is the largest difference of the
logits over the largest change of the logits by training; and the tokens that our model generates greedily must be
llama.cpp's first choice at every place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import taskedge as te
from benchmarks.interop.llama_runtime import Llama
from benchmarks.record import figure, show, write
from taskedge.backbone.loading import load_base
from taskedge.demo.assets.model_assets import GEMMA_PARTS, SMOLLM2, gemma3_270m, join_parts, smollm2
from taskedge.demo.assets.text_assets import movie_reviews, read_rows, split
from taskedge.demo.fetch import Source

RESULTS = ("in_llama_cpp.json",)
STEPS, ROWS, TOKENS, COLUMNS, NEW_TOKENS = 6, 4, 48, 8, 8
PROMPTS = (
    "The capital of France is", "A film that", "Once upon a time", "The best way to learn is", "def add(a, b):",
    "Water boils at", "My favorite book is", "In the year 1969", "The weather today is", "To be or not to",
    "A neural network is", "The actor was", "This movie made me", "I would not recommend", "Two plus two is",
    "The opposite of hot is", "Dear Sir or Madam,", "The train was late because", "She opened the door and",
    "In conclusion,",
)  # fmt: skip
BASES = {"SmolLM2-135M-Instruct": (smollm2, (SMOLLM2,)), "Gemma 3 270M": (gemma3_270m, GEMMA_PARTS)}
BAR = 0.02


def fp16_base(parts: Sequence[Source], folder: Path) -> Path:
    """Return the packaged GGUF file with its matrices as fp16 instead of quantized; all else is the same."""
    import gguf

    join_parts(parts, folder / "packed.gguf", print, None)
    reader = gguf.GGUFReader(str(folder / "packed.gguf"))
    writer = gguf.GGUFWriter(str(folder / "base.gguf"), reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float16) if len(tensor.shape) > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "base.gguf"


def tuned(model: nn.Module, tokenizer: object) -> te.Delta:
    """Return a delta of a few steps on the first reviews."""
    texts = [text for text, _ in split(read_rows(movie_reviews(print)), {"train": STEPS * ROWS}, seed=0)["train"]]
    options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    batches = []
    for start in range(0, len(texts), ROWS):
        batch = dict(tokenizer(texts[start : start + ROWS], **options))  # type: ignore[operator]
        batches.append(batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)})
    te.install(model, te.select(model, batches[:1], columns=COLUMNS), trainable=[])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for batch in batches:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return te.extract(model)


@torch.no_grad()
def compare(name: str, folder: Path, parts: Sequence[Source]) -> list[dict[str, Any]]:
    """Tune a base, export the delta, and return the figures of running it in llama.cpp."""
    base = load_base("text-generation", folder, dtype="fp32")
    model, tokenizer = base.model.eval(), base.tokenizer
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    with torch.enable_grad():
        delta = tuned(model, tokenizer)
    model = load_base("text-generation", folder, dtype="fp32").model.eval()
    plain = [model(torch.tensor([ids])).logits[0].numpy() for ids in prompts]
    with tempfile.TemporaryDirectory() as files:
        file = fp16_base(parts, Path(files))
        done = te.export(model, delta, Path(files, "task.gguf"), to="gguf-lora", processor=tokenizer)
        te.apply(model, delta)
        answers = [
            model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)[0].tolist()
            for ids in prompts
        ]
        ours = [model(torch.tensor([ids])).logits[0].numpy() for ids in answers]
        runtime = Llama(file, Path(files, "task.gguf"))
        theirs = [runtime.logits(ids) for ids in answers]
        runtime.close()
    moved = max(np.abs(a[: len(b)] - b).max() for a, b in zip(ours, plain, strict=True))
    off = max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))
    same = sum(
        logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer[len(prompt) :]
        for logits, prompt, answer in zip(theirs, prompts, answers, strict=True)
    )
    return [
        figure(f"{name}: largest change of logits by training", [float(moved)]),
        figure(f"{name}: largest difference of logits, llama.cpp and ours", [float(off)]),
        figure(f"{name}: difference over change", [float(off / moved)], bar=BAR),
        figure(
            f"{name}: greedy answers of {NEW_TOKENS} tokens that differ, of {len(PROMPTS)}",
            [len(PROMPTS) - same],
            bar=0,
        ),
        figure(f"{name}: rank", [done.details["rank"]]),
        figure(f"{name}: adapter", [done.bytes / 1e6], unit="MB"),
    ]


def main() -> None:
    """Compare on each base and write the figures."""
    figures = [line for name, (get, parts) in BASES.items() for line in compare(name, get(print), parts)]
    show(figures)
    setting = f"bases of fp16 matrices, {COLUMNS} columns, {STEPS} steps; {len(PROMPTS)} prompts"
    write("interop", "in_llama_cpp", {"setting": setting, "figures": figures})


if __name__ == "__main__":
    main()
