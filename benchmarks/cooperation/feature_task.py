"""Movie reviews as sentence vectors of MiniLM-L6: a real task on which a fleet's run takes seconds.

A row is the mean of MiniLM's last hidden states, computed once and kept beside the model. The base that is trained is
the attention half of MiniLM's last two layers, with its pretrained weights, and a new head. A sentence vector is one
token, which attends to itself alone, so the half is its values, its output and its normalization. A device trains
entries of pretrained matrices by the same code as in any other run, at a thousandth of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from taskedge.backbone.cost_model import block_table
from taskedge.backbone.cost_table import BlockTable
from taskedge.demo import assets

LONGEST, BATCH = 48, 64
SIZES = {"train": 6000, "test": 2000}
SETTING = (
    "movie reviews, 6,000 training and 2,000 test rows; sentence vectors of MiniLM-L6, the attention half of its last "
    "two layers and a new head"
)

Row = dict[str, Any]


class SelfAttention(nn.Module):
    """The attention half of one layer of BERT, on a sequence of one token."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.value: nn.Linear = layer.attention.self.value  # type: ignore[union-attr, assignment]
        self.output: nn.Linear = layer.attention.output.dense  # type: ignore[union-attr, assignment]
        self.norm: nn.LayerNorm = layer.attention.output.LayerNorm  # type: ignore[union-attr, assignment]

    def forward(self, vector: Tensor) -> Tensor:
        return self.norm(vector + self.output(self.value(vector)))


class FeatureClassifier(nn.Module):
    """Two pretrained blocks on a sentence vector, and a head."""

    def __init__(self, layers: Sequence[nn.Module], classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SelfAttention(layer) for layer in layers)
        self.classifier = nn.Linear(self.layers[0].value.in_features, classes)  # type: ignore[union-attr, arg-type]

    def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        for layer in self.layers:
            features = layer(features)
        logits = self.classifier(features)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@dataclass
class FeatureTask:
    """The rows and the base."""

    rows: dict[str, list[Row]]
    labels: list[str]
    folder: Path

    def base(self, seed: int) -> FeatureClassifier:
        """The base, with a head by a seed."""
        body = AutoModel.from_pretrained(self.folder)
        torch.manual_seed(seed)
        return FeatureClassifier(body.encoder.layer[-2:], len(self.labels)).eval()

    def table(self, base: nn.Module) -> BlockTable:
        """The costs of its blocks."""
        return block_table(base, {"features": torch.zeros(1, base.classifier.in_features)}, share=0.0, name="features")  # type: ignore[union-attr]

    def accuracy(self, model: nn.Module) -> float:
        """Share of the test rows that are classified rightly."""
        batch = collate(self.rows["test"])
        with torch.no_grad():
            logits = model.eval()(batch["features"])["logits"]
        return float((logits.argmax(dim=1) == batch["labels"]).float().mean())


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    return {
        "features": torch.stack([row["features"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def feature_task() -> FeatureTask:
    """Read the rows, and compute their vectors once."""
    folder = assets.minilm(print)
    parts = assets.split(assets.read_rows(assets.movie_reviews(print)), SIZES, seed=0)
    labels = sorted({label for rows in parts.values() for _, label in rows})
    path = folder.parent / f"movie-review-vectors-{SIZES['train']}-{SIZES['test']}.npz"
    if not path.exists():
        vectors = {part: _vectors(folder, [text for text, _ in rows]) for part, rows in parts.items()}
        whole = path.with_suffix(".tmp.npz")
        np.savez(whole, **vectors)
        whole.replace(path)
    stored = np.load(path)
    rows = {
        part: [
            {"features": torch.from_numpy(vector), "labels": labels.index(label)}
            for vector, (_, label) in zip(stored[part], rows, strict=True)
        ]
        for part, rows in parts.items()
    }
    return FeatureTask(rows, labels, folder)


def _vectors(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Return the mean of the last hidden states of each text, [texts, width]."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # little padding
    vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            batch = tokenizer(
                [texts[place] for place in places],
                truncation=True,
                max_length=LONGEST,
                padding=True,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            states = model(**batch).last_hidden_state
            vectors[places] = ((states * mask).sum(dim=1) / mask.sum(dim=1)).numpy()
    return vectors
