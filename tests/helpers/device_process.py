"""A device as a process of its own, to be killed, frozen and started again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.nats.nats_links import NatsDeviceLink

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["taskedge.cooperation.transport.nats.nats_links"]
)  # torch is loaded once, not by every device


class Device:
    """Answers each task with its process id after ``facts["seconds"]`` of work, and writes down what it began."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._began = bundle.with_suffix(".began")
        self.start()

    def start(self) -> None:
        self._process = _processes.Process(target=_device, args=(self._bundle, self._began), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def began(self) -> list[int]:
        """The numbers of the tasks that were begun."""
        return [int(line) for line in self._began.read_text().split()] if self._began.exists() else []

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self.thaw()
        self.kill()


def _device(bundle: Path, began: Path) -> None:
    async def answer(message: Message) -> Message:
        with began.open("a") as file:
            file.write(f"{message.facts['n']}\n")
        await asyncio.to_thread(time.sleep, message.facts.get("seconds", 0))
        return Message("answer", {"n": message.facts["n"], "pid": os.getpid()})

    asyncio.run(NatsDeviceLink(bundle).serve(answer))
