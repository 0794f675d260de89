"""Run the demo: a small real model and real data, to a table of what training 0.1 % of the weights gains."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from taskedge.backbone.candidates import head_parameters
from taskedge.backbone.loading import Base, load_classifier
from taskedge.delta.load_with_delta import load_with_delta
from taskedge.demo import assets
from taskedge.profiling.process_memory import peak_bytes
from taskedge.reporting.tables import columns
from taskedge.training import trainer
from taskedge.training.data.table import label_set, read_table
from taskedge.training.data.text_data import collator, encode, predict, quality
from taskedge.training.trainer_config import TrainerConfig
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig

TRAIN, TEST, LONGEST = 4000, 1500, 48
CPU = torch.device("cpu")
HEAD_LR = 3e-3  # the best of the rates tried in benchmarks/accuracy/sweep.py


@dataclass(frozen=True)
class Line:
    """A row of the demo's table."""

    what: str
    accuracy: float
    entries: int
    share: float
    head: int
    seconds: float
    peak_memory: int
    file_bytes: int


def run(
    folder: Path,
    *,
    train_rows: int = TRAIN,
    epochs: float = 2,
    progress: bool = True,
    log: Callable[[str], None] = print,
) -> list[Line]:
    """Fetch MiniLM-L6 and the movie reviews, tune, and measure the written file on a freshly loaded base.

    Args:
        folder: destination of the data and the delta; created if it is missing.
        train_rows: number of training rows.
        epochs: passes over them.
        progress: whether to show a progress bar.
        log: receives a line of text for each step of the demo.

    Returns:
        Three rows: the untrained head, the trained head alone, and the head with 0.1 % of the weights.
    """
    model = assets.minilm(log)
    parts = assets.split(assets.read_rows(assets.movie_reviews(log)), {"train": train_rows, "test": TEST}, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    files = {part: assets.write_rows(folder / f"{part}.csv", rows) for part, rows in parts.items()}
    settings = TuneConfig(
        model=str(model),
        train=files["train"],
        text=["text"],
        label="label",
        epochs=epochs,
        max_length=LONGEST,
        out=folder / "movie-reviews.safetensors",
    )
    train, test = (read_table(files[part], "text", "label") for part in ("train", "test"))
    labels = label_set(train)

    def base() -> Base:
        from transformers import set_seed

        set_seed(settings.seed)
        return load_classifier(settings.model, labels)

    def accuracy(this: Base) -> float:
        assert test.labels is not None
        rows = encode(this.tokenizer, test.texts, None, LONGEST, log)
        truth = [labels.index(label) for label in test.labels]
        return quality(predict(this.model, rows, collator(this.tokenizer)), truth).accuracy

    log("measuring the untrained head")
    untrained = base()
    lines = [Line("untrained head", accuracy(untrained), 0, 0.0, 0, 0.0, peak_bytes(CPU), 0)]

    log("training the head alone")
    started, head = time.monotonic(), head_parameters(untrained.model)
    for name, parameter in untrained.model.named_parameters():
        parameter.requires_grad_(name in head)
    assert train.labels is not None
    truth = [labels.index(label) for label in train.labels]
    rows = encode(untrained.tokenizer, train.texts, truth, LONGEST, log)
    fit_head = TrainerConfig(epochs=epochs, lr=HEAD_LR, seed=settings.seed)
    with TemporaryDirectory() as tmp:
        trainer.train(untrained.model, rows, collator(untrained.tokenizer), fit_head, Path(tmp), progress=progress)
    taken = time.monotonic() - started
    size = sum(p.numel() for name, p in untrained.model.named_parameters() if name in head)
    lines.append(Line("head only", accuracy(untrained), 0, 0.0, size, taken, peak_bytes(CPU), 0))
    del untrained

    done = tune(settings, force=True, progress=progress, log=log)
    log("measuring the written file on a freshly loaded base")
    fresh, _ = load_with_delta(done.out, settings.model)
    lines.append(
        Line(
            "0.1 % tuned",
            accuracy(fresh),
            done.entries,
            done.share,
            done.head,
            done.seconds,
            done.peak_memory,
            done.file_bytes,
        )
    )
    return lines


def table(lines: list[Line]) -> str:
    """Return the rows as a table for a terminal."""
    rows = [["", "accuracy", "entries", "share", "head", "seconds", "peak MB", "file bytes"]]
    rows += [
        [
            line.what,
            f"{line.accuracy:.3f}",
            f"{line.entries:,}",
            f"{line.share:.3%}",
            f"{line.head:,}",
            f"{line.seconds:.0f}",
            f"{line.peak_memory / 1e6:.0f}",
            f"{line.file_bytes:,}",
        ]
        for line in lines
    ]
    return columns(rows)
