"""Tiny bases of every kind that tests know, and how much a row's result differs between alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiny_task
import torch
import transformers
from tiny_task import WORDS

from taskedge.backbone.loading import TASK_AUTO_CLASSES, Base, load_base
from taskedge.training.data.table import Table
from taskedge.training.passes_loss import PassesLoss
from taskedge.training.tasks import TASKS, Columns, Task

VOCABULARY = len(WORDS) + 4
_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_BODY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
_BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "init_std": 0.3,
    "decoder_start_token_id": 3,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("AlbertConfig", {**_BODY, "embedding_size": 8}),
    "bert": ("BertConfig", _BODY),
    "deberta-v2": (
        "DebertaV2Config",
        {**_BODY, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
    ),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "initializer_range": 0.3},
    ),
    "electra": ("ElectraConfig", {**_BODY, "embedding_size": 16}),
    "modernbert": (
        "ModernBertConfig",
        {**_BODY, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "mpnet": ("MPNetConfig", _BODY),
    "roberta": ("RobertaConfig", _BODY),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}),
    "falcon": ("FalconConfig", {**_BODY, "alibi": False}),
    "gemma": ("GemmaConfig", {**_BODY, **_GROUPED}),
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}),
    "gpt_neox": ("GPTNeoXConfig", _BODY),
    "llama": ("LlamaConfig", {**_BODY, **_GROUPED}),
    "opt": ("OPTConfig", {**_BODY, "ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.3}),
    "qwen2": ("Qwen2Config", {**_BODY, "num_key_value_heads": 1}),
    "bart": ("BartConfig", _BART),
    "t5": (
        "T5Config",
        {
            "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0,
            "initializer_factor": 1.0,
        },
    ),
    "xlnet": ("XLNetConfig", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "initializer_range": 0.3}),
    "convbert": ("ConvBertConfig", {**_BODY, "embedding_size": 16, "head_ratio": 1}),
    "vit": ("ViTConfig", {**_BODY, "image_size": 8, "patch_size": 4}),
    "dinov2": ("Dinov2Config", {**_BODY, "image_size": 8, "patch_size": 4}),
}  # fmt: skip
"""Class of the config and its fields, by kind of base."""
ENCODERS = ("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta")
DECODERS = ("bloom", "falcon", "gemma", "gpt2", "gpt_neox", "llama", "opt", "qwen2")
CLASSIFIERS = (*ENCODERS, *DECODERS, "bart", "t5", "xlnet")
"""Kinds whose classifiers do not read padding, if it is on the right side."""
GENERATORS = DECODERS
IMAGE_MODELS = ("dinov2", "vit")
CASES = (
    *(("text-classification", kind) for kind in CLASSIFIERS),
    *(("text-regression", kind) for kind in CLASSIFIERS),
    *(("text-generation", kind) for kind in GENERATORS),
    *(("image-classification", kind) for kind in IMAGE_MODELS),
)
"""Every kind of task with each kind of base."""
CLASSES = ("neg", "neutral", "pos")
LENGTHS = (3, 9, 1, 5)


def base_of(kind: str, task: str, folder: Path, *, padding: bool = True) -> Base:
    """Save a base of a kind and load it for a task.

    Its tokenizer prefers the side on which padding is wrong for the kind; without ``padding`` it has no padding token.
    """
    config_class, fields = CONFIGS[kind]
    config = getattr(transformers, config_class)(**({} if kind in IMAGE_MODELS else _TOKENS), **fields)
    torch.manual_seed(0)
    auto = getattr(transformers, TASK_AUTO_CLASSES[task])
    config.num_labels = 1 if task == "text-regression" else len(CLASSES)
    if task == "image-classification":
        auto.from_config(config).save_pretrained(folder)
    else:
        words = tiny_task.speaker() if task == "text-generation" else tiny_task.tokenizer()
        words.eos_token = "[SEP]"
        if not padding:
            words.pad_token = None
        tiny_task._save(auto.from_config(config), folder, words)
    base = load_base(task, folder, CLASSES if task.endswith("classification") else (), keep_head=True)
    if base.tokenizer is not None:
        base.tokenizer.model_input_names = ["input_ids", "attention_mask"]
        base.tokenizer.padding_side = "right" if kind == "xlnet" else "left"
    base.model.eval()
    return base


def rows_of(task: str, base: Base, folder: Path, lengths: Sequence[int] = LENGTHS) -> tuple[Task, list[dict[str, Any]]]:
    """Return a task bound to a base, and its rows: texts of some numbers of words, or images of several sizes."""
    if task == "image-classification":
        table = TASKS[task].read(tiny_task.images(folder / "images", len(lengths)), Columns(), answers=True, log=str)
        bound = TASKS[task](("blue", "red", "x"))
        return bound, bound.encode(base, table, 0, str)
    texts = [
        " ".join(WORDS[(3 * row + place * (row + 1)) % len(WORDS)] for place in range(n))
        for row, n in enumerate(lengths)
    ]
    labels = {
        "text-classification": [CLASSES[row % 3] for row in range(len(texts))],
        "text-regression": [str(row * 1.5 - 2) for row in range(len(texts))],
        "text-generation": [" ".join(WORDS[row : 2 * row + 1]) for row in range(len(texts))],
    }[task]
    table = Table(folder / "x.csv", texts, labels)
    columns = Columns(prompt="prompt", response="response") if task == "text-generation" else Columns()
    bound = TASKS[task].from_table(table, columns).bind(base, table, 40, 3)
    return bound, bound.encode(base, table, 40, str)


def largest_differences(task: Task, base: Base, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the largest difference between rows alone and all in a batch: of ``eval``, ``predict`` and ``training``.

    Differences of values over 1 are relative to the value, and those of gradients over 1 to a parameter's largest.
    """
    at_once: list[Callable[..., Any]] = [task.evaluate, task.predict]
    measures, answers = ([run(base.model, base, rows, size, str) for size in (1, len(rows))] for run in at_once)
    collate = task.collate(base)
    alone = _gradients(base.model, [collate([row]) for row in rows])
    together = _gradients(base.model, [collate(list(rows))])
    return {
        "eval": _difference(*measures),
        "predict": max(_difference(*pair) for pair in zip(*answers, strict=True)),
        "training": max(map(_relative, alone, together)),
    }


def _difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of numbers in two answers; 1 if a class or a text differs."""
    values = [(one[key], other[key]) for key in one]
    return max(abs(a - b) / max(1.0, abs(a)) if isinstance(a, float) else float(a != b) for a, b in values)


def _gradients(model: torch.nn.Module, batches: list[Any]) -> list[torch.Tensor]:
    """Return the loss of a step that has these batches, and its gradients."""
    losses = PassesLoss(model)
    losses.begin_step(batches)
    model.zero_grad()
    total = torch.zeros(())
    for batch in batches:
        loss = losses(batch)
        loss.backward()
        total += loss.detach()
    return [total, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / max(1.0, float(one.abs().max())))
