"""A few devices and a coordinator in one process, over links in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import BertConfig, BertForSequenceClassification

from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.device.local_training import LocalTraining
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink, MemoryDeviceLink

Change = Callable[[Message, Callable[[Message], Awaitable[Message]]], Awaitable[Message]]
"""Stands between a device and its link: gets the question and the device's own way to answer it."""


class Changed:
    """A device's end whose answers pass through ``change``, as an attacker's or a broken device's would."""

    def __init__(self, end: MemoryDeviceLink, change: Change) -> None:
        self.end, self.change = end, change

    async def serve(self, answer: Callable[[Message], Awaitable[Message]]) -> None:
        await self.end.serve(lambda message: self.change(message, answer))

    async def say(self, message: Message) -> None:
        await self.end.say(message)

    async def close(self) -> None:
        await self.end.close()


def model(layers: int = 4, dropout: float = 0.0, seed: int = 7) -> BertForSequenceClassification:
    """A BERT of width 16, with a head of its own seed's."""
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
    """Token ids of 3 to 8 tokens, with a label that the first of them tells."""
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
    """A device's part, with a head of its own."""
    return LocalTraining(made if made is not None else model(seed=100 + seed, **about), rows(count, seed), collate)


def settings(**changes: Any) -> CooperateSettings:
    """Short rounds, plain SGD, no deadline that a busy machine could miss, and plans that do not follow its clock."""
    fixed: dict[str, Any] = {
        "per_neuron": 1,
        "step": "plain",
        "rounds": 4,
        "batch_size": 4,
        "optimiser": "sgd",
        "lr": 0.05,
        "warmup": 0.0,
        "clip": 0.0,
        "upload": "float32",
        "turns": 0.0,
        "passing": 0.0,
        "wait_seconds": 20.0,
        "least_deadline": 30.0,
        "first_deadline": 30.0,
        "follow_pace": False,
    }
    return CooperateSettings(**{**fixed, **changes})


class Fleet:
    """Devices over one hub, which stay when a coordinator ends."""

    def __init__(self, trainings: Mapping[str, LocalTraining], changes: Mapping[str, Change] | None = None) -> None:
        self.hub, self.trainings, self.changes = MemoryCoordinatorLink(), dict(trainings), dict(changes or {})
        self.devices: dict[str, Device] = {}
        self.serving: dict[str, asyncio.Task[None]] = {}

    def join(self, name: str, **about: Any) -> None:
        """The device comes, as a new process would: with a model that holds nothing of a run."""
        end: Any = self.hub.device(name)
        if name in self.changes:
            end = Changed(end, self.changes[name])
        self.devices[name] = Device(end, self.trainings[name], **about)
        self.serving[name] = asyncio.create_task(self.devices[name].serve(stay=True))

    async def lose(self, name: str) -> None:
        """The device's process ends."""
        self.serving[name].cancel()
        await asyncio.gather(self.serving[name], return_exceptions=True)

    async def close(self) -> None:
        for name in list(self.serving):
            await self.lose(name)


@asynccontextmanager
async def fleet(trainings: Mapping[str, LocalTraining], changes: Mapping[str, Change] | None = None, **about: Any):
    """All of them there."""
    made = Fleet(trainings, changes)
    for name in trainings:
        made.join(name, **about)
    try:
        yield made
    finally:
        await made.close()


def coordinator(made: Fleet, folder: Path, how: CooperateSettings, **more: Any) -> Coordinator:
    """One with the same base and a head of its own, and no devices that the machine's memory decides about."""
    base = more.pop("base", None)
    return Coordinator(made.hub, base if base is not None else model(), how, folder, **more)


def run(folder: Path, how: CooperateSettings, trainings: Mapping[str, LocalTraining], **more: Any):
    """A whole run: (coordinator, result, events)."""
    events: list[dict[str, Any]] = []
    changes = more.pop("changes", None)

    async def whole():
        async with fleet(trainings, changes) as made:
            head = coordinator(made, folder, how, on_event=events.append, **more)
            return head, await head.run()

    head, result = asyncio.run(whole())
    return head, result, events
