"""A device in its own process, to be killed, frozen and started again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["taskedge.cooperation.transport.nats.device_link"]
)  # torch is loaded once, not by every device


class Device:
    """Answers each task with its process id after ``header["seconds"]`` of work, and records the tasks begun."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._began = bundle.with_suffix(".began")
        self.start()

    def start(self) -> None:
        self._process = processes.Process(target=_device, args=(self._bundle, self._began), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def began(self) -> list[int]:
        """Numbers of the tasks that began."""
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
            file.write(f"{message.header['n']}\n")
        await asyncio.to_thread(time.sleep, message.header.get("seconds", 0))
        return Message("answer", {"n": message.header["n"], "pid": os.getpid()})

    asyncio.run(NatsDeviceLink(bundle).serve(answer))
