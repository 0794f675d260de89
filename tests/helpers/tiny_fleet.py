"""A few devices and a coordinator in one process, over links in memory."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import BertConfig, BertForSequenceClassification

from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.device.local_training import LocalTraining
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.round_task import RoundTask, TrainingRecipe
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink, MemoryDeviceLink

Change = Callable[[Message, Callable[[Message], Awaitable[Message]]], Awaitable[Message]]
"""Gets a request and the device's own handler, and returns the answer to send."""


async def unchanged(message: Message, answer: Callable[[Message], Awaitable[Message]]) -> Message:
    """The device's own answer."""
    return await answer(message)


class Changed:
    """A device's link whose answers pass through ``change``, like those of an attacker or a broken device.

    Another ``end`` may take its place between two calls of ``serve``.
    """

    def __init__(self, end: MemoryDeviceLink, change: Change) -> None:
        self.end, self.change = end, change

    async def serve(self, answer: Callable[[Message], Awaitable[Message]]) -> None:
        await self.end.serve(lambda message: self.change(message, answer))

    async def close(self) -> None:
        await self.end.close()


def model(layers: int = 4, dropout: float = 0.0, seed: int = 7) -> BertForSequenceClassification:
    """A BERT of width 16, with a head drawn by ``seed``."""
    config = BertConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        num_labels=tiny.LABELS,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made = BertForSequenceClassification(config)
        torch.manual_seed(seed)
        torch.nn.init.normal_(made.classifier.weight)
    return made.eval()


def rows(count: int = 20, seed: int = 0) -> list[dict[str, Any]]:
    """Token ids of 3 to 8 tokens, with the label that follows from the first one."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for place in range(count):
        ids = torch.randint(1, tiny.VOCABULARY, (3 + place % 6,), generator=draw)
        made.append({"input_ids": ids.tolist(), "labels": int(ids[0]) % tiny.LABELS})
    return made


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in examples)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in examples])
    labels = torch.tensor([row["labels"] for row in examples])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def training(seed: int = 0, count: int = 20, made: Any = None, **about: Any) -> LocalTraining:
    """A device's training, with its own head."""
    base = made if made is not None else model(seed=100 + seed, **about)
    return LocalTraining(base, rows(count, seed), collate, min_rows=1)


def devices(count: int, **about: Any) -> dict[str, LocalTraining]:
    """The trainings of devices ``d0``, ``d1``, ..., each with its own rows."""
    return {f"d{number}": training(number, **about) for number in range(count)}


def round_task(**changes: Any) -> tuple[RoundTask, TrainingRecipe]:
    """One plain step on four rows in the first round; ``changes`` are fields of the task or of the recipe."""
    fields: dict[str, Any] = {
        "device": "",
        "blocks": (0, 1, 2),
        "seed": 5,
        "round": 1,
        "batch_size": 4,
        "local_steps": 1,
        "optimizer": "sgd",
        "lr": 0.1,
        "head_lr": 0.2,
        "weight_decay": 0.0,
        **changes,
    }
    of_task = {field.name for field in dataclasses.fields(RoundTask)}
    task = RoundTask(**{name: value for name, value in fields.items() if name in of_task})
    return task, TrainingRecipe(**{name: value for name, value in fields.items() if name not in of_task})


def settings(**changes: Any) -> CooperationConfig:
    """Short rounds, plain SGD, no deadline that a busy machine misses, plans independent of measured seconds."""
    fixed: dict[str, Any] = {
        "per_neuron": 1,
        "step": "plain",
        "rounds": 4,
        "batch_size": 4,
        "server_optimizer": "sgd",
        "lr": 0.05,
        "warmup": 0.0,
        "clip": 0.0,
        "upload": "float32",
        "rotation_slack": 0.0,
        "traversal_slack": 0.0,
        "wait_seconds": 20.0,
        "min_deadline": 30.0,
        "first_deadline": 30.0,
        "calibrate": False,
    }
    return CooperationConfig(**{**fixed, **changes})


class Fleet:
    """Devices on one in-memory transport, which stay when a coordinator ends."""

    def __init__(self, trainings: Mapping[str, LocalTraining], changes: Mapping[str, Change] | None = None) -> None:
        self.hub, self.trainings, self.changes = MemoryCoordinatorLink(), dict(trainings), dict(changes or {})
        self.devices: dict[str, Device] = {}
        self.ends: dict[str, Changed] = {}
        self.serving: dict[str, asyncio.Task[None]] = {}

    def join(self, name: str, **about: Any) -> None:
        """Start the device as a new process: its model has no support installed."""
        self.ends[name] = Changed(self.hub.device(name), self.changes.get(name, unchanged))
        self.devices[name] = Device(self.ends[name], self.trainings[name], **about)
        self.serving[name] = asyncio.create_task(self.devices[name].serve(stay=True))

    async def reconnect(self, name: str) -> None:
        """Cut the device's link and make a new one. The process keeps its support and values."""
        await self.lose(name)
        self.ends[name].end = self.hub.device(name)
        self.serving[name] = asyncio.create_task(self.devices[name].serve(stay=True))

    async def lose(self, name: str) -> None:
        """End the device's process."""
        self.serving[name].cancel()
        await asyncio.gather(self.serving[name], return_exceptions=True)

    async def close(self) -> None:
        for name in list(self.serving):
            await self.lose(name)


@asynccontextmanager
async def fleet(trainings: Mapping[str, LocalTraining], changes: Mapping[str, Change] | None = None, **about: Any):
    """A fleet with all devices connected."""
    made = Fleet(trainings, changes)
    for name in trainings:
        made.join(name, **about)
    try:
        yield made
    finally:
        await made.close()


def coordinator(made: Fleet, folder: Path, how: CooperationConfig, **more: Any) -> Coordinator:
    """A coordinator with the same base and its own head."""
    base = more.pop("base", None)
    return Coordinator(made.hub, base if base is not None else model(), how, folder, **more)


def run(folder: Path, how: CooperationConfig, trainings: Mapping[str, LocalTraining], **more: Any):
    """A whole run: (coordinator, result, events)."""
    events: list[dict[str, Any]] = []
    changes = more.pop("changes", None)

    async def whole():
        async with fleet(trainings, changes) as made:
            head = coordinator(made, folder, how, on_event=events.append, **more)
            return head, await head.run()

    head, result = asyncio.run(whole())
    return head, result, events
