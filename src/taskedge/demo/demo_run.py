"""Run the demo: a small real model and real data, to a table of what training 0.1 % of the weights gains."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.candidates import head_parameters
from taskedge.backbone.loading import Base, load_classifier
from taskedge.delta.load_with_delta import load_with_delta
from taskedge.demo import assets
from taskedge.profiling.process_memory import peak_bytes
from taskedge.reporting.tables import columns
from taskedge.training.class_figures import class_figures, worst_mistakes
from taskedge.training.data.table import label_set, read_table
from taskedge.training.data.text_data import (
    Prediction,
    Row,
    class_probabilities,
    collator,
    encode,
    outputs,
    predict,
    quality,
)
from taskedge.training.head_warmup import warm_head
from taskedge.training.thread_watch import set_threads
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig

TRAIN, TEST, EPOCHS, LONGEST = 1600, 1000, 2.0, 48
ROWS_PER_PASS = 32
CPU = torch.device("cpu")


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


@dataclass(frozen=True)
class DemoResult:
    """Measurements of the demo, and the files that it wrote.

    Attributes:
        lines: the rows of its table.
        delta: the delta file.
        log: folder of the log of its run.
        examined: measures, figures of classes and worst mistakes of the written file, for the report.
    """

    lines: list[Line]
    delta: Path
    log: Path
    examined: dict[str, Any]


class _Heads(nn.ModuleList):
    """Several heads on the same features; gives the outputs of all."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs of all heads, one after the other in the last dimension."""
        return torch.cat([head(features) for head in self], dim=-1)


def run(
    folder: Path,
    *,
    train_rows: int = TRAIN,
    epochs: float = EPOCHS,
    progress: bool = True,
    log: Callable[[str], None] = print,
) -> DemoResult:
    """Fetch MiniLM-L6 and the movie reviews, tune, and measure the written file on a freshly loaded base.

    Args:
        folder: destination of the data and the delta; created if it is missing.
        train_rows: number of training rows.
        epochs: passes over them.
        progress: whether to show a progress bar.
        log: receives a line of text for each step of the demo.

    Returns:
        Three rows: the untrained head, the trained head alone, and the head with 0.1 % of the weights. The head alone
        is fitted to the optimum on features of the frozen model, which are computed once.
    """
    set_threads(None, log)
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
        log=folder / "run",
        out=folder / "movie-reviews.safetensors",
    )
    train, test = (read_table(files[part], "text", "label") for part in ("train", "test"))
    labels = label_set(train)

    def base() -> Base:
        from transformers import set_seed

        set_seed(settings.seed)
        return load_classifier(settings.model, labels)

    truth = {name: [labels.index(label) for label in part.labels or ()] for name, part in (("a", train), ("b", test))}

    def test_rows(this: Base) -> list[Row]:
        return encode(this.tokenizer, test.texts, None, LONGEST, lambda _: None)

    def accuracy(prediction: Prediction) -> float:
        return quality(prediction, truth["b"]).accuracy

    log("training the head alone")
    frozen = base()
    untrained = copy.deepcopy(frozen.model.get_submodule("classifier"))
    started, head = time.monotonic(), head_parameters(frozen.model)
    size = sum(p.numel() for name, p in frozen.model.named_parameters() if name in head)
    rows = encode(frozen.tokenizer, train.texts, truth["a"], LONGEST, log)
    log(str(warm_head(frozen.model, rows, collator(frozen.tokenizer), ROWS_PER_PASS)))
    taken = time.monotonic() - started
    log("measuring the untrained head and the trained one, in one pass")
    frozen.model.classifier = _Heads([untrained, frozen.model.get_submodule("classifier")])
    both = torch.from_numpy(outputs(frozen.model, test_rows(frozen), collator(frozen.tokenizer), ROWS_PER_PASS))
    before, after = (accuracy(class_probabilities(part.numpy())) for part in both.chunk(2, dim=1))
    lines = [Line("untrained head", before, 0, 0.0, 0, 0.0, peak_bytes(CPU), 0)]
    lines.append(Line("head only", after, 0, 0.0, size, taken, peak_bytes(CPU), 0))
    del frozen

    done = tune(settings, force=True, progress=progress, log=log)
    log("measuring the written file on a freshly loaded base")
    fresh, _ = load_with_delta(done.out, settings.model)
    prediction = predict(fresh.model, test_rows(fresh), collator(fresh.tokenizer), ROWS_PER_PASS)
    measured = quality(prediction, truth["b"])
    lines.append(
        Line(
            "0.1 % tuned",
            measured.accuracy,
            done.entries,
            done.share,
            done.head,
            done.seconds,
            done.peak_memory,
            done.file_bytes,
        )
    )
    examined = {
        "path": files["test"].name,
        "measures": asdict(measured),
        "figures": class_figures(labels, truth["b"], prediction.classes.tolist()),
        "mistakes": worst_mistakes(labels, truth["b"], prediction.probabilities, test.texts),
    }
    return DemoResult(lines, done.out, folder / "run", examined)


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
