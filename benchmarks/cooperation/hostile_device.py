"""A device with a valid key of its own sends 10^5 mutated messages while four honest devices train.

    python -m benchmarks.cooperation.hostile_device             # some twenty minutes; goes on where it was stopped
    python -m benchmarks.cooperation.hostile_device --seeds 3   # this seed alone

Every run is a coordinator, four honest devices and the hostile one, over a real server with mutual TLS on loopback,
with a tiny BERT, 200 rows a device and ``fedavg``. A seed gives three runs on the same rows:

    without   the hostile device is not there
    guarded   with the defaults: budgets for what a device sends, quarantine after three refused answers
    open      without budgets and quarantine, so that every message is read and every answer judged

The hostile device is a real one whose messages are mutated before they leave: heartbeats, and the answers to ``hello``,
``statistics``, ``install``, ``task`` and ``done``. A mutation puts extreme numbers (10^400, 1e308, NaN, subnormals, -1)
or other types into a field, removes or repeats a key, nests 900 lists or opens 10^5, adds 900 kB of JSON or 1,000
tensors, scales, renames, reshapes or drops a tensor, flips bits, cuts the bytes, lies about the chunks, or replays what
was sent before. An answer goes to the token of the request that is open, to an old one, or to one that never was.
Honest device 0 holds each round open until the hostile one has sent its share, so that all phases are attacked.

A crash is a run that ends with an exception. A lost version is a round after which no version is newer. Accuracy is
that of the coordinator's model on 200 held-out rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import TEST_HELPERS, machine, results
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator import versions
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.joint_task import JointTask, TaskSpec, joint_task
from taskedge.cooperation.protocol.chunking import ChunkAssembler, split_message
from taskedge.cooperation.protocol.message import MAGIC, Message
from taskedge.cooperation.transport import flood_guard
from taskedge.cooperation.transport.links import Handler
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink
from taskedge.cooperation.transport.nats.server import free_port

sys.path.insert(0, str(TEST_HELPERS))
import tiny_task

RESULTS = ("hostile_device.jsonl",)
PATH = results("cooperation") / RESULTS[0]
SEEDS, ROUNDS, MESSAGES = 5, 60, 10_000
"""Messages per attacked run: two of them a seed make 10^5 in all."""
HONEST = ("d0", "d1", "d2", "d3")
HOSTILE = "hostile"
MODES = ("without", "guarded", "open")
NUMBERS = ("0", "-1", "1" + "0" * 400, "1e308", "-1e308", "1e-320", "1e999", "NaN", "Infinity", "9223372036854775807")
VALUES = (*NUMBERS, "true", "null", '""', '"x"', "[]", "{}", "[[1]]", '{"x": 1}', '"' + "y" * 10_000 + '"')
Frames = list[bytes]


class Mutator:
    """Makes frames from a message, by a seed.

    Args:
        seed: Of everything that it draws.
    """

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._sent: list[Frames] = []
        self.made: Counter[str] = Counter()

    def frames(self, message: Message) -> Frames:
        """Return the frames of one mutated message."""
        kinds: list[Callable[[Message], Frames]] = [
            *[self._field] * 12, *[self._missing, self._twice, self._kind] * 2, self._nested, self._huge,
            *[self._tensors] * 8, *[self._bits, self._cut, self._chunks, self._noise, self._replay] * 2,
        ]  # fmt: skip
        kind = self._draw.choice(kinds)
        self.made[kind.__name__.strip("_")] += 1
        frames = kind(message)
        if len(self._sent) < 200:
            self._sent.append(frames)
        return frames

    def report(self, message: dict[str, Any]) -> bytes:
        """Return a mutated heartbeat."""
        self.made["report"] += 1
        how = self._draw.randrange(1, 5)
        if self._draw.random() < 0.01:
            return json.dumps(message | {"process": self._draw.random()}).encode()
        if how == 1:
            return json.dumps(message).replace("}", f', "connection": {self._draw.choice(VALUES)}}}').encode()
        if how == 2:
            return b"[" * self._draw.choice([900, 5000])
        if how == 3:
            return self._draw.randbytes(self._draw.choice([1, 100, 10_000]))
        return json.dumps({"process": [message], "connection": "x"}).encode()

    def _field(self, message: Message) -> Frames:
        header = dict(message.header)
        key = self._draw.choice(sorted(header) or ["x"])
        return self._packed(message, {**_texts(header), key: self._draw.choice(VALUES)})

    def _missing(self, message: Message) -> Frames:
        header = dict(message.header)
        header.pop(self._draw.choice(sorted(header) or ["x"]), None)
        return self._packed(message, _texts(header))

    def _twice(self, message: Message) -> Frames:
        header = _texts(message.header)
        key = self._draw.choice(sorted(header) or ["x"])
        return self._packed(message, header, f', "{key}": {self._draw.choice(VALUES)}')

    def _nested(self, message: Message) -> Frames:
        deep = self._draw.choice(["[" * 900 + "]" * 900, '{"a":' * 500 + "1" + "}" * 500, "[" * 100_000])
        return self._packed(message, _texts(message.header), f', "deep": {deep}')

    def _huge(self, message: Message) -> Frames:
        many = self._draw.choice(['"' + "z" * 900_000 + '"', "[" + "1," * 200_000 + "1]", '"' + "z" * 1_100_000 + '"'])
        return self._packed(message, _texts(message.header), f', "huge": {many}')

    def _kind(self, message: Message) -> Frames:
        kinds = ["hello", "statistics", "installed", "gradients", "values", "changes", "expired", "unready", "error"]
        return _split(_pack(self._draw.choice([*kinds, "", "k" * 1000]), _texts(message.header), "", message.tensors))

    def _tensors(self, message: Message) -> Frames:
        tensors = dict(message.tensors)
        if not tensors:
            tensors["x"] = torch.zeros(self._draw.choice([0, 3, 2**20]))
        name = self._draw.choice(sorted(tensors))
        tensor = tensors[name]
        how = self._draw.randrange(8)
        if how < 2:
            factor = self._draw.choice([1e20, -1e20, 1e38, float("nan"), float("inf"), 1e5, 0.0])
            tensors = {key: (value.double() * factor).to(value.dtype) for key, value in tensors.items()}
        elif how == 2:
            del tensors[name]
        elif how == 3:
            tensors[name + "'"] = tensors.pop(name)
        elif how == 4:
            tensors[name] = tensor.double() if tensor.dtype != torch.float64 else tensor.float()
        elif how == 5:
            tensors[name] = torch.zeros(self._draw.choice([0, 1, tensor.numel() + 1, 2**18]), dtype=tensor.dtype)
        elif how == 6:
            tensors |= {f"x{number}": torch.zeros(0) for number in range(1000)}
        else:
            tensors[name] = torch.full_like(tensor.float(), 3e38).to(tensor.dtype)
        return _split(Message(message.kind, message.header, tensors).pack())

    def _bits(self, message: Message) -> Frames:
        packed = bytearray(message.pack())
        for _ in range(self._draw.choice([1, 3, 50])):
            packed[self._draw.randrange(len(packed))] ^= 1 << self._draw.randrange(8)
        return _split(bytes(packed))

    def _cut(self, message: Message) -> Frames:
        packed = message.pack()
        return _split(packed[: self._draw.randrange(len(packed))])

    def _chunks(self, message: Message) -> Frames:
        frames = [bytearray(frame) for frame in split_message(message.pack(), max(1, len(message.pack()) // 3))]
        at = self._draw.choice([3, 7, 11, 19])  # index, count, bytes, digest
        frame = self._draw.choice(frames)
        frame[at : at + 4] = self._draw.randbytes(4)
        if self._draw.random() < 0.3:
            self._draw.shuffle(frames)
        return [bytes(frame) for frame in frames]

    def _noise(self, message: Message) -> Frames:
        return [self._draw.randbytes(self._draw.choice([0, 1, 47, 100, 100_000]))]

    def _replay(self, message: Message) -> Frames:
        return self._draw.choice(self._sent) if self._sent else _split(message.pack())

    def _packed(self, message: Message, header: dict[str, str], more: str = "") -> Frames:
        return _split(_pack(message.kind, header, more, message.tensors))


def _texts(header: Any) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in header.items()}


def _pack(kind: str, header: dict[str, str], more: str, tensors: Any) -> bytes:
    fields = "".join(f", {json.dumps(key)}: {value}" for key, value in header.items())
    text = f'{{"kind": {json.dumps(kind)}{fields}{more}}}'.encode()
    packed = Message(kind, {}, tensors).pack()
    return MAGIC + len(text).to_bytes(4, "little") + text + packed[7 + int.from_bytes(packed[3:7], "little") :]


def _split(packed: bytes) -> Frames:
    return list(split_message(packed))


class HostileLink:
    """The hostile device's end: it answers every request with mutated messages, and sends others beside.

    Args:
        bundle: Its keys.
        seed: Of the mutations.
        messages: Number of mutated messages that it sends in a run.
    """

    def __init__(self, bundle: Path, seed: int, messages: int) -> None:
        self._bundle, self._draw = Bundle.open(bundle), random.Random(seed)
        self.mutator = Mutator(seed)
        self._messages = messages
        self.sent = 0
        self.asked: Counter[str] = Counter()
        self._last: dict[str, Message] = {"hello": Message("hello", {"protocol": 2})}
        self._tokens = ["0" * 24]
        self.round = 0
        """The last round that ended."""
        self._process = "first"
        self._client: Any = None

    @property
    def share_sent(self) -> float:
        """The share of its messages that it has sent."""
        return self.sent / self._messages

    async def serve(self, handler: Handler) -> None:
        """Connect, be there, and answer; see ``DeviceLink.serve``. Connect again whenever the server ends it."""
        while True:
            with suppress(Exception):
                await self._serve_connection(handler)
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """Leave."""
        if self._client is not None:
            with suppress(Exception):
                await self._client.close()

    async def _serve_connection(self, handler: Handler) -> None:
        from nats.aio.client import Client

        async def on_error(_: Exception) -> None:
            return

        self._client = client = Client()
        await client.connect(
            self._bundle.server,
            tls=self._bundle.tls(),
            tls_handshake_first=True,
            allow_reconnect=False,
            error_cb=on_error,
        )
        tasks: asyncio.Queue[Any] = asyncio.Queue()
        await client.subscribe(f"taskedge.task.{HOSTILE}", cb=tasks.put)
        flooding = asyncio.create_task(self._flood())
        assembler = ChunkAssembler()
        try:
            while not client.is_closed:
                try:
                    msg = await asyncio.wait_for(tasks.get(), 0.5)
                except TimeoutError:
                    await self._here()
                    continue
                packed = assembler.add(msg.data) if msg.data else None
                if packed is not None:
                    await self._answer(Message.unpack(packed), msg.reply, handler)
                await self._here()
        finally:
            flooding.cancel()

    async def _here(self) -> None:
        fields = {"process": self._process, "connection": self._client.client_id}
        await self._client.publish(f"taskedge.up.{HOSTILE}.here", json.dumps(fields).encode())

    async def _answer(self, request: Message, reply: str, handler: Handler) -> None:
        self.asked[request.kind] += 1
        honest = await handler(request)
        self._last[honest.kind] = honest
        self._tokens = [*self._tokens[-50:], reply.rsplit(".", 1)[1]]
        takes_part = request.kind in ("hello", "install") and (
            self.asked[request.kind] < 3 or self._draw.random() < 0.6
        )
        if takes_part or self.share_sent >= 1:  # so that it is asked for more; and a run must end
            for frame in _split(honest.pack()):
                await self._client.publish(reply, frame)
            return
        await self._publish(reply, self.mutator.frames(honest))
        for frame in _split(b"not a message"):  # so that the request ends even if that was no whole message
            await self._client.publish(reply, frame)

    async def _flood(self) -> None:
        """Send messages that nobody asked for, as many a round as are its share."""
        while True:
            due = min(1.0, (self.round + 1) / ROUNDS) * self._messages
            if self.sent >= due:
                await asyncio.sleep(0.01)
                continue
            draw = self._draw.random()
            if draw < 0.3:
                fields = {"process": self._process, "connection": self._client.client_id}
                await self._publish(f"taskedge.up.{HOSTILE}.here", [self.mutator.report(fields)])
            else:
                message = self._last[self._draw.choice(sorted(self._last))]
                token = self._draw.choice([*self._tokens[-3:], self._draw.choice(self._tokens), "f" * 24, "x"])
                await self._publish(f"taskedge.up.{HOSTILE}.answer.{token}", self.mutator.frames(message))
            if self.sent % 20 == 0:
                await self._client.flush()
            if self.sent % 500 == 0:  # as a new process, which is asked for everything once more
                self._process = f"process {self.sent}"
                await self._here()
                await asyncio.sleep(0.02)

    async def _publish(self, subject: str, frames: Frames) -> None:
        self.sent += 1
        for frame in frames:
            await self._client.publish(subject, frame)


class PatientLink:
    """An honest device's end that holds the tasks of a round until the hostile device has sent its share."""

    def __init__(self, link: NatsDeviceLink, hostile: HostileLink) -> None:
        self._link, self._hostile = link, hostile

    async def serve(self, handler: Handler) -> None:
        """See ``DeviceLink.serve``."""

        async def patient(message: Message) -> Message:
            if message.kind == "task":
                while self._hostile.share_sent < min(1.0, message.header["round"] / ROUNDS):
                    await asyncio.sleep(0.01)
            return await handler(message)

        await self._link.serve(patient)

    async def close(self) -> None:
        """See ``DeviceLink.close``."""
        await self._link.close()


def settings(mode: str, seed: int) -> CooperationConfig:
    """Return the settings of a run."""
    return CooperationConfig(
        mode="fedavg",
        budget="50%",
        step="plain",
        rounds=ROUNDS,
        batch_size=32,
        lr=2e-2,
        seed=seed,
        devices=len(HONEST) if mode == "without" else len(HONEST) + 1,
        wait_seconds=20.0,
        min_deadline=30.0,
        quarantine_after=10**9 if mode == "open" else 3,
    )


async def cooperate(folder: Path, base: Path, mode: str, seed: int, messages: int) -> dict[str, Any]:
    """Run once, and return its figures."""
    names = (HOSTILE, *HONEST)
    registry = DeviceRegistry.create(folder / "plant", port=free_port())
    bundles = {name: registry.enroll(name) for name in names}
    server = registry.start_server()
    hostile = HostileLink(bundles[HOSTILE], seed, messages)
    events: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "round":
            hostile.round = event["round"]

    serving = []
    started = time.monotonic()
    processor = time.process_time()
    try:
        for place, name in enumerate(names):
            if mode == "without" and name == HOSTILE:
                continue
            joint = _joint(base, folder / f"{name}.csv", seed, tiny_task.rows(200, seed=100 * seed + place))
            link: Any = hostile if name == HOSTILE else NatsDeviceLink(bundles[name])
            if name == "d0" and mode != "without":
                link = PatientLink(link, hostile)
            device = Device(link, joint.local_training(), labels=joint.labels)
            serving.append(asyncio.create_task(device.serve(stay=True)))
        own = _joint(base, folder / "eval.csv", seed, tiny_task.rows(200, seed=7))
        link = await NatsCoordinatorLink.connect(registry.coordinator_bundle)
        config = settings(mode, seed)
        coordinator = Coordinator(
            link,
            own.base.model,
            config,
            folder / "run",
            full_parameters=own.full_parameters,
            labels=own.labels,
            on_event=on_event,
        )
        row: dict[str, Any] = {"crash": None}
        try:
            result = await coordinator.run()
            row |= {"rounds": result.rounds, "version": result.version}
        except Exception as error:
            row |= {"crash": f"{type(error).__name__}: {error}"[:500]}
        seen = link.traffic(HOSTILE)[1]
        await link.close()
    finally:
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        server.stop()
    row["seconds"] = round(time.monotonic() - started, 1)
    row["processor_seconds"] = round(time.process_time() - processor, 1)
    row["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if row["crash"] is None:
        row["accuracy"] = own.task.evaluate(own.base.model, own.base, own.rows, 50, lambda _: None)["accuracy"]
    return row | _figures(folder, events, hostile, seen.messages if mode != "without" else {})


def _figures(folder: Path, events: list[dict[str, Any]], hostile: HostileLink, seen: dict[str, int]) -> dict[str, Any]:
    tasks = [event for event in events if event["event"] == "task"]
    outcomes: dict[str, Counter[str]] = {"hostile": Counter(), "honest": Counter()}
    for event in tasks:
        outcomes["hostile" if event["device"] == HOSTILE else "honest"][event["result"]] += 1
    last = versions.latest(folder / "run")
    on_disk = versions.read(last)[0]["version"] if last else None
    log = folder / "run" / "log.jsonl"
    return {
        "version_on_disk": on_disk,
        "lost_versions": ROUNDS - (on_disk or 0),
        "sent": hostile.sent,
        "mutations": dict(hostile.mutator.made),
        "asked": dict(hostile.asked),
        "frames_read": sum(seen.values()),
        "frames_by_kind": seen,
        "hostile_tasks": dict(outcomes["hostile"]),
        "honest_tasks": dict(outcomes["honest"]),
        "honest_refused": [e["why"] for e in tasks if e["device"] != HOSTILE and e["result"] == "refused"],
        "hostile_refused": dict(
            Counter(e["why"].split(":")[0][:40] for e in tasks if e["device"] == HOSTILE and e["result"] == "refused")
        ),
        "quarantined": sorted({event["device"] for event in events if event["event"] == "quarantined"}),
        "named": dict(Counter(e["event"] for e in events if e.get("device") == HOSTILE and e["event"] != "task")),
        "log_lines": len(events),
        "log_bytes": log.stat().st_size,
        "log_is_json": all(_is_json(line) for line in log.read_text().splitlines()),
    }


def _is_json(line: str) -> bool:
    def refuse(name: str) -> float:
        raise ValueError(name)

    try:
        json.loads(line, parse_constant=refuse)
    except ValueError:
        return False
    return True


def _joint(base: Path, path: Path, seed: int, rows: Any) -> JointTask:
    tiny_task.table(path, rows)
    return joint_task(TaskSpec(str(base), path, classes=("neg", "pos"), seed=seed), lambda _: None)


def one(mode: str, seed: int, messages: int) -> dict[str, Any]:
    """Run one mode of a seed in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"hostile-{mode}-{seed}-"))
    base = tiny_task.bert(folder / "base", seed=seed)
    budgets = {name: getattr(flood_guard, name) for name in ("FRAMES_BURST", "BYTES_BURST", "JOINS_BURST")}
    if mode == "open":
        for name in budgets:
            setattr(flood_guard, name, 10**15)
    try:
        row = asyncio.run(cooperate(folder, base, mode, seed, messages))
    finally:
        for name, value in budgets.items():
            setattr(flood_guard, name, value)
        shutil.rmtree(folder, ignore_errors=True)
    return {"mode": mode, "seed": seed} | row


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line per mode."""
    for mode in MODES:
        mine = [row for row in rows if row["mode"] == mode]
        if mine:
            accuracy = [row.get("accuracy", 0.0) for row in mine]
            yield (
                f"{mode}: {len(mine)} runs, {sum(row['sent'] for row in mine):,} mutated messages, "
                f"{sum(row['frames_read'] for row in mine):,} frames read, "
                f"{sum(row['crash'] is not None for row in mine)} crashes, "
                f"{sum(row['lost_versions'] for row in mine)} lost versions, accuracy "
                f"{statistics.mean(accuracy):.3f} ({min(accuracy):.3f} to {max(accuracy):.3f}), "
                f"hostile quarantined in {sum(row['quarantined'] == [HOSTILE] for row in mine)}, "
                f"honest answers refused: {sum(row['honest_tasks'].get('refused', 0) for row in mine)}"
            )


def main() -> None:
    """Run what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--out", type=Path, default=PATH)
    given = parser.parse_args()
    os.environ |= tiny_task.environment(TOKENIZERS_PARALLELISM="false")
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {(row["mode"], row["seed"]) for row in rows}
    for seed in given.seeds:
        for mode in MODES:
            if (mode, seed) not in done:
                row = one(mode, seed, 0 if mode == "without" else given.messages)
                rows.append(row)
                with given.out.open("a") as file:
                    file.write(json.dumps(row | {"machine": machine()}) + "\n")
                shown = ("mode", "seed", "crash", "accuracy", "sent", "frames_read", "seconds")
                print(json.dumps({key: row.get(key) for key in shown}), flush=True)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
