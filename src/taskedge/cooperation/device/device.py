"""A device of a cooperative run: it keeps a model loaded and answers the coordinator's messages.

Kinds of messages (each names its ``run``), and the kinds of their answers:

- ``hello``: identify yourself. Answer: ``hello`` with the digest of the base, labels, rows, memory, profile, and the
  version of the run's values.
- ``statistics``: sum over calibration batches. Answer: ``statistics``.
- ``install``: train this support from now on. Answer: ``installed``.
- ``task``: take over these values, train these blocks. Answer: ``gradients``, ``values`` or ``changes``; ``expired`` if
  the task's time is over; ``unready`` if the device does not have the version that the values add to.
- ``done``: take over the last values. Answer: ``bye``.

Any failure is answered with ``error`` and the reason. No message contains a row of the device's data, but gradients,
changes of values and statistics are computed from the rows and their labels, and reveal something about both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from taskedge.backbone.fingerprint import base_digest
from taskedge.cooperation.device.local_training import LocalTraining, TaskExpired
from taskedge.cooperation.device.suspend_clock import SuspendAwareClock
from taskedge.cooperation.protocol.device_info import DeviceInfo
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.payloads import decode_support, statistics_message, support_digest
from taskedge.cooperation.protocol.quantization import answer_kind, quantize
from taskedge.cooperation.protocol.round_task import read_round_task
from taskedge.cooperation.transport.links import DeviceLink
from taskedge.errors import TaskEdgeError
from taskedge.profiling.process_memory import machine_bytes
from taskedge.profiling.profile_file import Profile
from taskedge.training.run_provenance import larger_steps_text


class Device:
    """A server of one coordinator's messages.

    Args:
        link: This device's end; None: the caller brings messages to :meth:`answer`.
        training: Its model and rows.
        profile: What ``taskedge measure`` measured here, for the plan.
        labels: The classes, in the order of the rows' labels. A coordinator with other classes refuses the device.
        memory_bytes: Memory that the run may use; None: all that the machine has.
        on_hung: Called when a training still runs ``patience`` times its time after it began. A thread cannot be ended
            from outside, so the process should exit then (``os._exit``), and its supervisor should restart it.
        patience: See ``on_hung``.
        clock: Gives the time of arrival of messages; None: one by ``time.monotonic``.
        log: Called with a line about each message.
    """

    def __init__(
        self,
        link: DeviceLink | None,
        training: LocalTraining,
        *,
        profile: Profile | None = None,
        labels: Sequence[str] = (),
        memory_bytes: float | None = None,
        on_hung: Callable[[], None] | None = None,
        patience: float = 4.0,
        clock: SuspendAwareClock | None = None,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._link, self._training, self._profile, self._labels = link, training, profile, tuple(labels)
        self._on_hung, self._patience, self._log = on_hung, patience, log
        model_device = next(training.model.parameters()).device
        self._memory_bytes = float(machine_bytes(model_device) if memory_bytes is None else memory_bytes)
        self._digest = base_digest(training.model, training.full_parameters)
        self._clock = clock or SuspendAwareClock()
        self._done = asyncio.Event()
        self._run = ""
        self._version: int | None = None
        """Version of that run's values; None: no support is installed."""
        self._support = ""
        """Digest of the installed support; empty: none is installed."""

    async def serve(self, *, stay: bool = False) -> None:
        """Answer until the run is done, or until cancelled with ``stay``; then leave.

        Afterwards the model has the run's last values, and :func:`taskedge.extract` returns its delta.
        """
        assert self._link is not None
        ticking = asyncio.create_task(self._clock.run())
        serving = asyncio.create_task(self._link.serve(self.answer))
        done = asyncio.create_task(self._done.wait())
        try:
            await asyncio.wait([serving] if stay else [serving, done], return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()  # raises what ended it
            else:
                await asyncio.sleep(0.05)  # lets the last answer leave
        finally:
            for task in (ticking, serving, done):
                task.cancel()
            await asyncio.gather(ticking, serving, done, return_exceptions=True)
            await self._link.close()

    @property
    def run_version(self) -> tuple[str, int | None]:
        """The run that it took part in last, and the version of that run's values; None: no support is installed."""
        return self._run, self._version

    def values_message(self) -> Message | None:
        """Return the values of its run, for :meth:`restore` in another process; None if there are none."""
        if self._version is None:
            return None
        return Message("kept", {"run": self._run, "version": self._version}, self._training.values)

    async def restore(self, install: Message, values: Message) -> None:
        """Continue for another process, from its ``install`` message and its :meth:`values_message`.

        Raises:
            TaskEdgeError: They do not fit this model.
        """
        await self._install(install)
        self._training.receive(values.tensors)
        self._run, self._version = str(values.header["run"]), int(values.header["version"])

    async def answer(self, message: Message, arrived: float | None = None) -> Message:
        """Answer one message. Never raises, since a device must outlive any message.

        Args:
            message: From the coordinator.
            arrived: Time of arrival by ``time.monotonic``; None: the earliest possible by the clock of :meth:`serve`.
        """
        arrived = self._clock.earliest_arrival() if arrived is None else arrived
        handlers: dict[str, Callable[[Message], Awaitable[Message]]] = {
            "hello": self._hello,
            "statistics": self._statistics,
            "install": self._install,
            "task": partial(self._task, arrived=arrived),
            "done": self._finish,
        }
        handler = handlers.get(message.kind)
        try:
            if handler is None:
                raise MessageError(f"a message of unknown kind {message.kind!r}")
            return await handler(message)
        except Exception as error:
            why = str(error) if isinstance(error, TaskEdgeError) else f"{type(error).__name__}: {error}"
            self._log(f"{message.kind}: {why}")
            return Message("error", {"why": why[:1000]})

    async def _hello(self, message: Message) -> Message:
        info = DeviceInfo(
            base=self._digest,
            labels=self._labels,
            rows=len(self._training.rows),
            memory_bytes=self._memory_bytes,
            profile=self._profile,
            run=self._run,
            version=self._version,
            support=self._support if self._version is not None else "",
            min_rows=self._training.min_rows,
        )
        return info.message()

    async def _statistics(self, message: Message) -> Message:
        self._version = None  # statistics are taken on the base, so the support is removed
        header = message.header
        statistics = await asyncio.to_thread(
            self._training.statistics, header["needs"], header["batches"], header["batch_size"], header["seed"]
        )
        self._log("sent statistics of its data, for the choice of weights")
        return statistics_message(statistics)

    async def _install(self, message: Message) -> Message:
        header, tensors = message.header, message.tensors
        support = decode_support(header["support"], tensors)
        head = {name.removeprefix("head/"): value for name, value in tensors.items() if name.startswith("head/")}
        digest = support_digest(support)
        if header.get("digest", digest) != digest:  # earlier revisions send none
            raise MessageError(f"the support has the digest {digest}, not {header['digest']}: it was damaged")
        self._version = None
        await asyncio.to_thread(self._training.install, support, header["step"], header["sizes"], head)
        self._run, self._version, self._support = str(header["run"]), 0, digest
        larger = larger_steps_text(support, header["step"])
        self._log(f"installed {support}" + (f"; steps{larger}" if larger else ""))
        return Message("installed", {"run": self._run})

    async def _task(self, message: Message, arrived: float) -> Message:
        header = message.header
        identity = {"run": header["run"], "round": header["round"], "version": header["version"]}
        if not self._take_over_values(message):
            return Message("unready", {**identity, "holds": [self._run, self._version]})
        seconds = float(header["expires_in"])

        def check() -> None:
            if time.monotonic() > arrived + seconds:
                raise TaskExpired

        task, recipe = read_round_task(header["job"])
        started = time.monotonic()
        try:
            check()
            result = await self._run_in_thread(partial(self._training.train, task, recipe, check), seconds)
            check()
        except TaskExpired:
            self._log(f"round {recipe.round}: its time was over, nothing is sent")
            return Message("expired", identity)
        spent = time.monotonic() - started
        note = f"; {self._training.note}" if self._training.note else ""
        self._log(f"round {recipe.round}: blocks {list(task.blocks)}, loss {result.loss:.4f}, {spent:.2f} s{note}")
        kind = answer_kind(header["upload"], recipe.local_steps)
        tensors = quantize(kind, header["upload"], result.tensors, self._training.values)
        measured = {"tokens": result.tokens, "loss": _finite_or_none(result.loss), "seconds": spent}
        return Message(kind, {**identity, **measured}, tensors)

    async def _finish(self, message: Message) -> Message:
        has_last_values = self._take_over_values(message)
        self._done.set()
        return Message("bye", {"run": message.header["run"], "version": self._version if has_last_values else None})

    def _take_over_values(self, message: Message) -> bool:
        """Take over the message's values and return True, unless they add to a version that this device lacks."""
        header = message.header
        if self._version is None or header["run"] != self._run:
            return False
        if not header["since"] <= self._version <= header["version"]:
            return False
        self._training.receive(message.tensors)
        self._version = int(header["version"])
        return True

    async def _run_in_thread(self, work: Callable[[], Any], seconds: float) -> Any:
        """Run ``work`` in a thread, so that the link stays alive meanwhile, and report a hanging one."""
        working = asyncio.ensure_future(asyncio.to_thread(work))
        done, _ = await asyncio.wait([working], timeout=max(1.0, self._patience * seconds))
        if not done and self._on_hung is not None:
            self._log(f"training still runs after {self._patience * seconds:.0f} s: it hangs")
            self._on_hung()
        return await working


def _finite_or_none(loss: float) -> float | None:
    """Return None for NaN and infinities, which JSON does not have."""
    return loss if abs(loss) < float("inf") else None
