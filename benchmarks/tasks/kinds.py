"""Every kind of task on a real model and real data, as `taskedge tune` does it by default: fp32, bf16, and no entries.

    # all runs: about an hour of one core
    python -m benchmarks.tasks.kinds
    python -m benchmarks.tasks.kinds --workloads trec-6 --try "lr=0.01" "lr=0.03 batch_size=8"  # on validation rows

Training, validation and test rows are drawn once. A run is a process of its own, so that its peak memory is its own,
and appends one line to results/kinds.jsonl; a sweep that was killed goes on where it stopped. Test rows are looked at
by runs at the default settings only: the written delta is put on a freshly loaded base, as `taskedge eval` does.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.accuracy.sweep import append
from benchmarks.record import machine, results
from taskedge.demo import assets
from taskedge.profiling.process_memory import peak_bytes
from taskedge.training.inference import prepare_inference
from taskedge.training.run import prepare_run
from taskedge.training.trainer import train
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig

RESULTS = ("kinds.jsonl",)

PATH = results("tasks") / "kinds.jsonl"
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "fp32"},
    "bf16 weights": {"dtype": "bf16"},
    "bf16 autocast": {"dtype": "fp32", "bf16": True},
    "no entries": {"dtype": "fp32"},  # the head alone; the untrained model where no head trains
}
Parts = dict[str, list[tuple[str, str]]]
"""Input and answer of every row of train, validation and test."""


@dataclass(frozen=True)
class Workload:
    """A model with data for it. ``columns`` name input and answer; settings are those of tune that are no default."""

    model: Callable[[], Path]
    parts: Callable[[], Parts]
    columns: tuple[str, str] = ("text", "label")
    settings: Mapping[str, Any] = field(default_factory=dict)
    variants: Sequence[str] = ("fp32", "bf16 weights", "no entries")
    seeds: int = 1
    """Of fp32 and bf16 weights."""


def texts(table: Callable[[], Path], train: int, validation: int, test: int) -> Callable[[], Parts]:
    """Rows of a table; held-out ones of classes that training lacks are left out, since nothing could learn these."""
    sizes = {"train": train, "validation": validation, "test": test}

    def parts() -> Parts:
        found = assets.split(assets.read_rows(table()), sizes, seed=0)
        known = {label for _, label in found["train"]}
        classes = len(known) < 100  # else numbers
        return {part: [row for row in rows if not classes or row[1] in known] for part, rows in found.items()}

    return parts


def pictures(folder: Callable[[], Path], train: int, validation: int, test: int) -> Callable[[], Parts]:
    """Paths and classes: training and validation from the folder's ``train``, test from its ``test``."""

    def rows(part: str) -> list[tuple[str, str]]:
        return [(str(path), path.parent.name) for path in sorted((folder() / part).glob("*/*.png"))]

    def parts() -> Parts:
        learnt = assets.split(rows("train"), {"train": train, "validation": validation}, seed=0)
        return learnt | assets.split(rows("test"), {"test": test}, seed=0)

    return parts


def asked(table: Callable[[], Path], train: int, validation: int, test: int) -> Callable[[], Parts]:
    """Questions with the classes that an answer may have, to be answered by one of them."""

    def parts() -> Parts:
        found = texts(table, train, validation, test)()
        classes = sorted({label for rows in found.values() for _, label in rows})
        task = f"Type of answer: {', '.join(classes[:-1])} or {classes[-1]}?"
        return {part: [(f"{text}\n{task}", label) for text, label in rows] for part, rows in found.items()}

    return parts


def minilm() -> Path:
    return assets.minilm(print)


ALL = tuple(VARIANTS)
WORKLOADS = {
    "movie-reviews": Workload(
        minilm, texts(lambda: assets.movie_reviews(print), 1000, 250, 1000), variants=ALL, seeds=3
    ),
    "trec-50": Workload(
        minilm, texts(lambda: assets.question_types(print, fine=True), 1000, 250, 1000), variants=ALL, seeds=3
    ),
    "tweets": Workload(minilm, texts(lambda: assets.tweets(print), 600, 200, 1000)),
    "sms-spam": Workload(minilm, texts(lambda: assets.sms_spam(print), 600, 200, 1000)),
    "bbc-news": Workload(minilm, texts(lambda: assets.bbc_news(print), 300, 100, 400)),
    "movie-scores": Workload(minilm, texts(lambda: assets.movie_scores(print), 1000, 250, 1000)),
    "fashion-mnist": Workload(
        lambda: assets.vit_small(print),
        pictures(lambda: assets.fashion_mnist(print), 600, 200, 500),
        ("image", "label"),
    ),
    "openclipart": Workload(
        lambda: assets.vit_small(print), pictures(lambda: assets.openclipart(print), 600, 200, 371), ("image", "label")
    ),
    "trec-6": Workload(
        lambda: assets.smollm2(print),
        asked(lambda: assets.question_types(print), 600, 100, 200),
        ("prompt", "response"),
        {"epochs": 1.0},
    ),
}


def settings_of(workload: str, variant: str, seed: int, trial: Mapping[str, Any], folder: Path) -> TuneConfig:
    """The defaults, but for what the workload, the variant and the caller say; its data is to be in ``folder``."""
    it = WORKLOADS[workload]
    return TuneConfig(
        model=str(it.model()),
        train=folder / "train.csv",
        eval=folder / "validation.csv",
        out=folder / "task.safetensors",
        seed=seed,
        threads=1,
        **{**VARIANTS[variant], **it.settings, **trial},
    )


def run(workload: str, variant: str, trial: str, seed: int) -> dict[str, Any]:
    """One run and what came of it; a trial, which says "NAME=VALUE ...", does not look at the test rows."""
    told = dict(part.split("=") for part in trial.split())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = WORKLOADS[workload].parts()
        for part, rows in parts.items():
            with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([WORKLOADS[workload].columns, *rows])
        settings = settings_of(workload, variant, seed, told, folder)
        work = _without_entries if variant == "no entries" else _tuned
        started = time.process_time()
        facts = work(settings, None if trial else folder / "test.csv", started)
    about = {"workload": workload, "variant": variant, "trial": trial, "seed": seed}
    counts = {f"{part}_rows": len(rows) for part, rows in parts.items()}
    kept = settings.model_dump(mode="json", exclude={"model", "train", "eval", "out"}, exclude_unset=True)
    return about | facts | counts | {"settings": kept, "machine": machine()}


def _tuned(settings: TuneConfig, test: Path | None, started: float) -> dict[str, Any]:
    result = tune(settings, progress=False)
    seconds = time.process_time() - started
    facts = asdict(result)
    names = ("task", "lr", "entries", "share", "head", "steps", "train_loss", "peak_memory", "file_bytes")
    found = {name: facts[name] for name in names} | {"cpu_seconds": round(seconds, 1), "validation": result.quality}
    if test is not None:
        found["test"] = prepare_inference(settings.out, test, answers=True).evaluate(settings.batch_size)
    return found


def _without_entries(settings: TuneConfig, test: Path | None, started: float) -> dict[str, Any]:
    """The head alone, trained as beside entries; where there is none to train, the model as it is."""
    state = prepare_run(settings, print)
    state.load()
    model = state.base.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in state.full_names)
    found: dict[str, Any] = {"task": state.task.name, "lr": settings.lr, "entries": 0, "share": 0.0}
    found |= {"head": state.num_full_parameters, "steps": 0, "train_loss": None}
    if state.full_names:
        with tempfile.TemporaryDirectory() as folder:
            done = train(model, state.rows, state.collate, state.config.trainer_config(), Path(folder), progress=False)
        found |= {"steps": done.steps, "train_loss": done.loss}
    found["cpu_seconds"] = round(time.process_time() - started, 1)
    found["peak_memory"] = peak_bytes(next(model.parameters()).device)
    for part, table in (("validation", settings.eval), ("test", test)):
        if table is not None:
            read = state.task.read(table, state.data.columns, answers=True, log=print)
            found[part] = state.task.evaluate(
                model, state.base, state.encode(read), settings.batch_size, lambda _: None
            )
    return found


Key = tuple[str, str, str, int]
"""Workload, variant, trial ("" for the default settings), seed."""


def wanted(workloads: Sequence[str], variants: Sequence[str], trials: Sequence[str]) -> list[Key]:
    """Every run, first seeds first."""
    runs = []
    for name in workloads:
        for variant in (variant for variant in WORKLOADS[name].variants if variant in variants):
            seeds = WORKLOADS[name].seeds if variant in ("fp32", "bf16 weights") and not trials else 1
            runs += [(name, variant, trial, seed) for trial in trials or [""] for seed in range(seeds)]
    return sorted(runs, key=lambda run: run[3])


def done() -> set[Key]:
    """What is on file."""
    lines = PATH.read_text().splitlines() if PATH.exists() else []
    return {(run["workload"], run["variant"], run["trial"], run["seed"]) for run in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="*", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--try", nargs="*", default=[], dest="trials", help="other settings, as NAME=VALUE")
    arguments = parser.parse_args()
    for key in wanted(arguments.workloads, arguments.variants, arguments.trials):
        if key in done():
            continue
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            facts = pool.submit(run, *key).result()
        append(PATH, facts)
        measured = {part: facts.get(part) for part in ("validation", "test")}
        print(*key, f"lr {facts['lr']:g}", f"{facts['cpu_seconds']:.0f} s", measured, flush=True)


if __name__ == "__main__":
    main()
