"""What the cost benchmarks measure: one model, full batches of real text, and our method beside its rivals."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

import taskedge as te
from taskedge.demo import assets

ROWS, TOKENS, CALIBRATION_BATCHES = 32, 128, 8
LINEARS = [
    "query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense",
    "attn.q", "attn.k", "attn.v", "attn.o",
]  # fmt: skip
"""Ends of the names of all encoder linears of BERT, and of MPNet, which shares those of its feed-forward layers."""
SETTING = (
    "all-MiniLM-L6-v2 in fp32, batches of 32 x 128 tokens of movie reviews without padding, one thread, training mode; "
    "entries: one per neuron of all 36 encoder linears, the classifier trains beside them"
)
DROPOUT = (0.1, 0.0)  # as the model ships, and off: its masks cost every method alike, and so draw all ratios to 1
Batch = dict[str, torch.Tensor]


def setup() -> tuple[nn.Module, list[Batch]]:
    """One thread, the base model with a fixed head, and the calibration batches."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = assets.minilm(print)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    return model, batches(AutoTokenizer.from_pretrained(folder), CALIBRATION_BATCHES)


def batches(tokenizer: Any, count: int) -> list[Batch]:
    """Reviews joined one after the other and cut into rows of [CLS] 126 tokens [SEP]: no padding anywhere."""
    reviews = assets.read_rows(assets.movie_reviews(print))
    tokens: list[int] = []
    labels: list[int] = []  # of the review that each token comes from
    for text, label in reviews:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens += ids
        labels += [int(label == "positive")] * len(ids)
    inner = TOKENS - 2
    rows = torch.tensor(tokens[: count * ROWS * inner]).view(-1, inner)
    ends = torch.ones(len(rows), 1, dtype=torch.int64)
    rows = torch.cat([ends * tokenizer.cls_token_id, rows, ends * tokenizer.sep_token_id], dim=1)
    of_row = torch.tensor(labels[: count * ROWS * inner : inner])
    return [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels_}
        for ids, labels_ in zip(rows.split(ROWS), of_row.split(ROWS), strict=True)
    ]


def sparse(rule: str) -> Callable[[nn.Module, list[Batch]], nn.Module]:
    def prepare(model: nn.Module, calibration: list[Batch]) -> nn.Module:
        return te.install(model, te.select(model, calibration, per_neuron=1, rule=rule))

    return prepare


def frozen_limit(model: nn.Module, calibration: list[Batch]) -> nn.Module:
    """The least that any training below the head costs: forward and dX everywhere, no dW."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("embeddings.LayerNorm.bias") or name.startswith("classifier."))
    return model


def rival(config: peft.PeftConfig) -> Callable[[nn.Module, list[Batch]], nn.Module]:
    def prepare(model: nn.Module, calibration: list[Batch]) -> nn.Module:
        with warnings.catch_warnings(action="ignore"):
            return peft.get_peft_model(model, config)

    return prepare


def full(model: nn.Module, calibration: list[Batch]) -> nn.Module:
    return model.requires_grad_(True)


_OURS_AS_SHARE = 20_736 / 10_616_832  # entries over the weights of the encoder linears: 0.09 % of the whole model
_PEFT: dict[str, Any] = {"target_modules": LINEARS, "task_type": "SEQ_CLS"}
METHODS: dict[str, Callable[[nn.Module, list[Batch]], nn.Module]] = {
    "frozen limit": frozen_limit,
    "taskedge": sparse("taskedge"),
    "magnitude": sparse("magnitude"),
    "random": sparse("random"),
    "LoRA r=8": rival(peft.LoraConfig(r=8, **_PEFT)),
    "SHiRA r=1": rival(peft.ShiraConfig(r=1, random_seed=0, **_PEFT)),
    "Super-Tuning": rival(peft.SupertuningConfig(sparsity=1 - _OURS_AS_SHARE, **_PEFT)),
    "full": full,
}


def variants(model: nn.Module, calibration: list[Batch]) -> dict[str, nn.Module]:
    """A deep copy of the model for every method, in training mode."""
    return {name: prepare(copy.deepcopy(model), calibration).train() for name, prepare in METHODS.items()}


def set_dropout(model: nn.Module, share: float) -> None:
    """Also of the attention, which reads the share from its module."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
