"""What the benchmarks of the cut share: MiniLM in the cloud, texts of one length, and the ways to train."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskedge.cooperation.cut.cloud_base import CloudBase, load_cloud_base
from taskedge.cooperation.cut.cut_local import LocalCut, cut_local
from taskedge.cooperation.cut.cut_plan import PlanGroup
from taskedge.cooperation.cut.cut_settings import CutSettings
from taskedge.cooperation.transport.links import CoordinatorLink
from taskedge.demo.assets import minilm
from taskedge.training.tune_config import TuneConfig

WAYS: dict[str, dict[str, Any]] = {
    "LoRA, rank 8": {"form": "lora", "rank": 8},
    "32 columns": {"columns": 32},
    "32 rows x 32 columns": {"columns": 32, "max_rows": 32},
}
"""Settings of ``tune`` for each way to train; all linears of all blocks."""
MESSAGES_OF_PASSES = {
    "down": ("columns", "states", "gradients"),
    "up": ("pass", "products", "gradient", "input_gradients"),
}
"""Kinds of messages with activations or gradients, by direction."""
WORDS = "the day is long and a river runs through it with no end in sight for those who wait by the old stone bridge"


def quiet(_: str) -> None:
    """Log nothing."""


def write_texts(folder: Path, rows: int, tokens: int) -> Path:
    """Write texts that are cut off at ``tokens``, so that all batches have one length."""
    draw, words = random.Random(0), WORDS.split()
    path = folder / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(rows):
            writer.writerow([" ".join(draw.choices(words, k=tokens)), ("first", "second")[row % 2]])
    return path


class Cut:
    """Runs of one base over the cut, with both ends in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = str(minilm(print))
        self._base: CloudBase | None = None

    def config(self, train: Path, **changes: Any) -> TuneConfig:
        """Return settings of ``tune``."""
        given: dict[str, Any] = {"model": self.model, "train": train, "out": self.folder / "cut.safetensors"}
        given |= {"text": ["text"], "label": ["label"], "threads": 1}
        return TuneConfig(**(given | changes))

    def run(
        self,
        config: TuneConfig,
        wrap: Callable[[CoordinatorLink], CoordinatorLink] | None = None,
        log: Callable[[str], None] = quiet,
        **settings: Any,
    ) -> LocalCut:
        """Train over the cut."""
        self._base = self._base or load_cloud_base(self.model, log=quiet)
        return cut_local(
            config, CutSettings(**settings), base=self._base, wrap=wrap, force=True, progress=False, log=log
        )


def bytes_of_passes(done: LocalCut) -> dict[str, int]:
    """Return the bytes of the messages with activations or gradients, by direction, headers and masks included."""
    parts = {"down": done.down, "up": done.up}
    return {way: sum(parts[way].bytes.get(kind, 0) for kind in kinds) for way, kinds in MESSAGES_OF_PASSES.items()}


def minilm_groups(way: str) -> list[PlanGroup]:
    """Return the groups of MiniLM's linears for a way to train, for the closed form."""
    width, hidden, settings = 384, 1536, WAYS[way]
    shapes = [(width, (width,) * 3), (width, (width,)), (width, (hidden,)), (hidden, (width,))]
    return [
        PlanGroup(
            name=f"{block}.{place}",
            columns=settings.get("columns") or inputs,
            rows=tuple(settings.get("max_rows") or out for out in outputs),
            inputs=inputs,
            outputs=outputs,
            rank=settings.get("rank"),
            block=block,
        )
        for block in range(6)
        for place, (inputs, outputs) in enumerate(shapes)
    ]
