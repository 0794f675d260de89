"""Runs over the cut to test with: a tiny base, both ends in this process, and a link that keeps what crosses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_task
import torch
import transformers
from wrapped_link import NO_LIMITS, WrappedLink

from taskedge.cooperation.cut.cloud_base import CloudBase
from taskedge.cooperation.cut.cut_local import LocalCut, cut_local
from taskedge.cooperation.cut.cut_settings import CutSettings
from taskedge.cooperation.protocol.message import Message, MessageLimits
from taskedge.cooperation.transport.links import CoordinatorLink
from taskedge.training.tune_config import TuneConfig

Change = Callable[[str, Message, Message], Message]
"""(device, request, its answer) -> the answer that the cloud gets."""


def quiet(_: str) -> None:
    """Log nothing."""


@dataclass
class Recorded(WrappedLink):
    """A cloud's end of a link that keeps every request and answer, and may change answers."""

    change: Change | None = None
    messages: list[tuple[Message, Message]] = field(default_factory=list)

    async def request(
        self, device: str, message: Message, seconds: float, limits: MessageLimits = NO_LIMITS
    ) -> Message:
        answer = await super().request(device, message, seconds, limits)
        self.messages.append((message, answer))
        return answer if self.change is None else self.change(device, message, answer)


@dataclass
class Files:
    """A base and data in a folder."""

    folder: Path
    base: Path

    def config(self, name: str = "cut.safetensors", **changes: Any) -> TuneConfig:
        settings = {"batch_size": 8, "epochs": 1, "threads": 1, "budget": "3%", "calibration": 2}
        if changes.get("form") == "lora":  # it selects nothing
            del settings["budget"], settings["calibration"]
        settings |= {"model": str(self.base), "train": self.folder / "train.csv", "out": self.folder / name}
        return TuneConfig(**(settings | changes))

    def run(
        self, name: str = "cut.safetensors", cut: dict[str, Any] | None = None, *, change: Change | None = None,
        force: bool = True, resume: bool = False, log: Callable[[str], None] = quiet, **changes: Any,
    ) -> tuple[LocalCut, Recorded]:  # fmt: skip
        """Run over the cut and return the outcome with all messages."""
        kept: list[Recorded] = []

        def wrap(link: CoordinatorLink) -> CoordinatorLink:
            kept.append(Recorded(link, change))
            return kept[0]

        done = cut_local(
            self.config(name, **changes), CutSettings(patience=20, **(cut or {})), wrap=wrap, force=force,
            resume=resume, progress=False, log=log,
        )  # fmt: skip
        return done, kept[0]


def files(folder: Path, make: Callable[..., Path] = tiny_task.bert, rows: int = 40, **changes: Any) -> Files:
    """Write a base, 40 training rows and 20 held-out rows."""
    base = make(folder / "base", **changes)
    tiny_task.table(folder / "train.csv", tiny_task.rows(rows))
    tiny_task.table(folder / "eval.csv", tiny_task.rows(20, seed=5))
    return Files(folder, base)


def cloud_base(layers: int = 2, width: int = 16, seed: int = 3, dropout: float = 0.0) -> CloudBase:
    """Return the blocks of a small BERT with weights that are not tiny."""
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, initializer_range=0.2, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    torch.manual_seed(seed)
    return CloudBase(transformers.BertModel(config), "tiny")
