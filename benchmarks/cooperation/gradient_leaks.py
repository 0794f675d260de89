"""What a coordinator learns from the answer of one device: rows and labels, by the rows of a step.

    python -m benchmarks.cooperation.gradient_leaks

A device trains one step on random movie reviews (feature_task.py, 1 % of the entries and the head) and sends its
gradient in float8. The coordinator knows the model, 120 candidate rows that the device may have, and 500 public rows.

    label      one row a step: the class whose entry of the head's bias gradient is negative
    row        one row a step: the candidate whose own gradient with that label points most in the same direction
    counts     8 and 32 rows: rows times the mean probability of each class on the public rows less the bias gradient,
               rounded; right if the count of every label is
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from transformers import logging

import taskedge as te
from benchmarks.cooperation.feature_task import SETTING, FeatureTask, Row, collate, feature_task
from benchmarks.record import figure, show, write
from taskedge.cooperation.device.local_training import LocalTraining
from taskedge.cooperation.protocol.quantization import dequantize, quantize
from taskedge.cooperation.protocol.round_task import RoundTask, TrainingRecipe

RESULTS = ("gradient_leaks.json",)
TRIALS, CANDIDATES, PUBLIC = 20, 120, 500
"""Trials of each figure, rows among which one is searched, and rows that the coordinator has."""
BIAS = "classifier.bias"


def device(given: FeatureTask, seed: int) -> LocalTraining:
    """A device before its first step; its rows are set later."""
    model = given.base(seed)
    support = te.select(model, [collate(given.rows["test"][:64])], budget="1%", seed=seed)
    training = LocalTraining(model, given.rows["train"][:1], collate, min_rows=1)
    training.install(support, "activation", None, {})
    return training


def gradient(training: LocalTraining, rows: list[Row]) -> dict[str, Tensor]:
    """The answer of a device that has these rows alone, as the coordinator reads it."""
    training.rows = rows
    task = RoundTask("", tuple(range(len(training.blocks) + 1)))
    recipe = TrainingRecipe(1, len(rows), 1, "sgd", 0.1, 0.1, 0.0)
    found = training.train(task, recipe).tensors
    return dequantize("gradients", quantize("gradients", "float8", found, training.values), training.values)


def one_row(given: FeatureTask, draw: random.Random, seed: int) -> tuple[bool, bool]:
    """Whether label and row are told."""
    candidates = draw.sample(given.rows["train"], CANDIDATES)
    truth = draw.randrange(CANDIDATES)
    training = device(given, seed)
    seen = gradient(training, [candidates[truth]])
    label = int(seen[BIAS].argmin())
    flat = torch.cat([seen[name].flatten() for name in sorted(seen)])
    scores = []
    for row in candidates:
        guess = gradient(training, [{**row, "labels": label}])
        scores.append(
            float(torch.cosine_similarity(flat, torch.cat([guess[n].flatten() for n in sorted(guess)]), dim=0))
        )
    return label == candidates[truth]["labels"], scores.index(max(scores)) == truth


def counted(given: FeatureTask, draw: random.Random, rows: int, seed: int) -> bool:
    """Whether the count of every label is told."""
    batch = draw.sample(given.rows["train"], rows)
    seen = gradient(device(given, seed), batch)
    with torch.no_grad():
        public = given.base(seed)(collate(given.rows["test"][:PUBLIC])["features"])["logits"].softmax(dim=1).mean(dim=0)
    guess = (rows * (public - seen[BIAS])).round().long()
    truth = torch.tensor([row["labels"] for row in batch]).bincount(minlength=len(given.labels))
    return torch.equal(guess, truth)


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = feature_task()
    ones = [one_row(given, random.Random(seed), seed) for seed in range(TRIALS)]
    figures = [
        figure(f"label told, one row a step, of {TRIALS}", [sum(label for label, _ in ones)]),
        figure(f"row told among {CANDIDATES}, one row a step, of {TRIALS}", [sum(row for _, row in ones)]),
    ]
    for rows in (8, 32):
        right = sum(counted(given, random.Random(100 + seed), rows, seed) for seed in range(TRIALS))
        figures.append(figure(f"counts of labels told, {rows} rows a step, of {TRIALS}", [right]))
    write("cooperation", "gradient_leaks", {"setting": SETTING, "figures": figures})
    show(figures)


if __name__ == "__main__":
    main()
