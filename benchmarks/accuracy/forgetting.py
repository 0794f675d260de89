"""How much of the base a method forgets: similarities of sentences of another task, before and after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import peft
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from taskedge.training.data.text_data import Row

TEXTS = 200
"""Texts of the other task; all their pairs count."""


def cosines(model: nn.Module, rows: Sequence[Row], collate: Callable[[list[Row]], Any], size: int = 50) -> Tensor:
    """Return the cosine of every pair of rows, float32 [n(n-1)/2], of the means over each row's last hidden states.

    Args:
        model: a classifier of transformers, or an adapter of PEFT around one; its head is not used.
        rows: encoded texts.
        collate: makes a batch.
        size: rows in a batch.
    """
    classifier = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    encoder = cast(nn.Module, classifier.base_model)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    means = []
    with torch.no_grad():
        for start in range(0, len(rows), size):
            batch = {name: value.to(device) for name, value in collate(list(rows[start : start + size])).items()}
            batch.pop("labels", None)
            states = encoder(**batch).last_hidden_state.float()  # [rows, tokens, width]
            mask = batch["attention_mask"].unsqueeze(-1).float()
            means.append((states * mask).sum(1) / mask.sum(1))
    model.train(was_training)
    vectors = nn.functional.normalize(torch.cat(means), dim=1).cpu()
    first, second = torch.triu_indices(len(vectors), len(vectors), offset=1)
    return (vectors @ vectors.t())[first, second]


def kept_ranks(before: Tensor, after: Tensor) -> float:
    """Return Spearman's rank correlation of the similarities before and after training: 1 if no order changed."""
    return float(spearmanr(before.numpy(), after.numpy()).statistic)
