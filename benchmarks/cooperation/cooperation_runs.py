"""Cooperative runs in one process and one thread: what the benchmarks of accuracy and bytes have in common."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from benchmarks.accuracy.sweep import TASKS
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.device.local_training import LocalTraining
from taskedge.cooperation.fleet.split_data import split_rows
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink
from taskedge.demo import assets
from taskedge.training.data.text_data import Row, collator, encode

TASK = "movie-reviews"
LONG = 3600.0
"""Seconds: no run here may depend on how busy the machine is."""


@dataclass
class Setting:
    """MiniLM and the rows that accuracy.py draws for movie reviews."""

    rows: dict[str, list[Row]]
    labels: list[str]
    collate: Callable[[list[Row]], Any]
    base: Callable[[int], nn.Module]
    """The model with a head of a seed's."""


def setting() -> Setting:
    """Reads them."""
    folder, parts = assets.minilm(print), TASKS[TASK].parts()
    labels = sorted({label for rows in parts.values() for _, label in rows})
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encoded(rows: Sequence[tuple[str, str]]) -> list[Row]:
        classes = [labels.index(label) for _, label in rows]
        return encode(tokenizer, [text for text, _ in rows], classes, TASKS[TASK].longest)

    def base(seed: int) -> nn.Module:
        set_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels))

    return Setting({part: encoded(rows) for part, rows in parts.items()}, labels, collator(tokenizer), base)


@dataclass
class Ran:
    """A run that is over: the coordinator's model with the last values, and the log."""

    model: nn.Module
    events: list[dict[str, Any]]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one kind."""
        return [line for line in self.events if line["event"] == event]


def cooperate(given: Setting, settings: CooperationConfig, *, skew: bool = False) -> Ran:
    """Runs all devices in this process, one at a time, on the training rows parted among them."""
    rows = given.rows["train"]
    parts = split_rows([str(row["labels"]) for row in rows], len(rows), settings.devices, skew=skew, seed=settings.seed)
    events: list[dict[str, Any]] = []

    async def run(folder: Path) -> nn.Module:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # dropout draws from one generator
        link, serving = MemoryCoordinatorLink(), []
        for number, places in enumerate(parts):
            training = LocalTraining(given.base(settings.seed), [rows[place] for place in places], given.collate)
            serving.append(asyncio.create_task(Device(link.device(f"device-{number}"), training).serve()))
        model = given.base(settings.seed)
        await Coordinator(link, model, settings, folder / "run", on_event=events.append).run()
        await asyncio.gather(*serving)
        return model

    with tempfile.TemporaryDirectory() as folder:
        return Ran(asyncio.run(run(Path(folder))), events)


def patient(**settings: Any) -> CooperationConfig:
    """Settings under which a run can be repeated bit by bit, however busy the machine is."""
    fixed = {"calibrate": False, "min_deadline": LONG, "first_deadline": LONG, "wait_seconds": LONG}
    return CooperationConfig(**fixed | settings)
