"""A device of a cooperative run: keeps a model warm, and answers what the coordinator asks.

It is asked (kinds of messages; all say which ``run`` they are of):

- ``hello``: who are you? Answer: digest of the base, labels, rows, memory, profile, and what it holds of the run.
- ``statistics``: sums over calibration batches. Answer: the same kind.
- ``install``: train this support from now on. Answer: ``installed``.
- ``task``: take these values up, train these blocks. Answer: ``gradients``, ``values`` or ``changes``; ``expired``
  where its time is over; ``unready`` where it does not hold the version that the values add to.
- ``done``: the last values. Answer: ``bye``.

What it cannot do is answered with ``error`` and the reason. Nothing that is sent holds a row of its data.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from taskedge.cooperation.device.local_training import Expired, Job, LocalTraining
from taskedge.cooperation.device.suspend_clock import Arrival
from taskedge.cooperation.protocol.base_identity import base_digest
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.payloads import read_support, statistics_message
from taskedge.cooperation.protocol.quantization import answer_kind, coded
from taskedge.cooperation.transport.links import DeviceLink
from taskedge.errors import TaskEdgeError
from taskedge.profiling.process_memory import machine_bytes
from taskedge.profiling.profile_file import Profile

PROTOCOL = 2


class Device:
    """Serves one coordinator over a link.

    Args:
        link: this device's end; None: something else brings messages to :meth:`answer`.
        training: its model and rows.
        profile: what ``taskedge measure`` found here, for the plan.
        labels: the classes, in the order of the rows' labels; refused by a coordinator that has others.
        memory_bytes: what the run may use; None: all that the machine has.
        on_hung: called when a training is still at work ``patience`` times its time after it began. A thread cannot be
            ended from outside: the process should leave then (``os._exit``), and its supervisor start it again.
        say: told in a line what happens.
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
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._link, self._training, self._profile, self._labels = link, training, profile, list(labels)
        self._on_hung, self._patience, self._say = on_hung, patience, say
        model_device = next(training.model.parameters()).device
        self._memory = float(machine_bytes(model_device) if memory_bytes is None else memory_bytes)
        self._digest = base_digest(training.model, training.whole)
        self._arrival = Arrival()
        self._done = asyncio.Event()
        self._run = ""
        self._version: int | None = None
        """What it holds of that run; None: no support."""

    async def serve(self, *, stay: bool = False) -> None:
        """Answers until the run is done, or until cancelled with ``stay``; then it leaves.

        The model holds the run's last values afterwards, and :func:`taskedge.extract` gives its delta.
        """
        assert self._link is not None
        ticker = asyncio.create_task(self._arrival.tick())
        serving = asyncio.create_task(self._link.serve(self.answer))
        done = asyncio.create_task(self._done.wait())
        try:
            await asyncio.wait([serving] if stay else [serving, done], return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()  # raises what ended it
            else:
                await asyncio.sleep(0.05)  # lets the last answer leave
        finally:
            for task in (ticker, serving, done):
                task.cancel()
            await asyncio.gather(ticker, serving, done, return_exceptions=True)
            await self._link.close()

    @property
    def holds(self) -> tuple[str, int | None]:
        """The run that it took part in last, and which version of it it holds; None: no support."""
        return self._run, self._version

    def kept(self) -> Message | None:
        """The values that it holds of a run, for :meth:`restore` in another process; None: there are none."""
        if self._version is None:
            return None
        return Message("kept", {"run": self._run, "version": self._version}, self._training.values)

    async def restore(self, install: Message, kept: Message) -> None:
        """Takes up what another process got as ``install`` and gave as :meth:`kept`.

        Raises:
            TaskEdgeError: they are not of this model.
        """
        await self._install(install)
        self._training.receive(kept.tensors)
        self._run, self._version = str(kept.facts["run"]), int(kept.facts["version"])

    async def answer(self, message: Message, arrived: float | None = None) -> Message:
        """The answer to one message; never raises, since a device must outlive whatever it is sent.

        Args:
            arrived: when it came, by ``time.monotonic``; None: as the ticker of :meth:`serve` says.
        """
        arrived = self._arrival.earliest() if arrived is None else arrived
        handlers: dict[str, Callable[[Message], Awaitable[Message]]] = {
            "hello": self._hello,
            "statistics": self._statistics,
            "install": self._install,
            "task": partial(self._task, arrived=arrived),
            "done": self._finish,
        }
        handle = handlers.get(message.kind)
        try:
            if handle is None:
                raise MessageError(f"a message of unknown kind {message.kind!r}")
            return await handle(message)
        except Exception as error:
            why = str(error) if isinstance(error, TaskEdgeError) else f"{type(error).__name__}: {error}"
            self._say(f"{message.kind}: {why}")
            return Message("error", {"why": why[:1000]})

    async def _hello(self, message: Message) -> Message:
        return Message(
            "hello",
            {
                "protocol": PROTOCOL,
                "base": self._digest,
                "labels": self._labels,
                "rows": len(self._training.rows),
                "memory_bytes": self._memory,
                "profile": None if self._profile is None else self._profile.model_dump(),
                "run": self._run,
                "version": self._version,
            },
        )

    async def _statistics(self, message: Message) -> Message:
        self._version = None  # they are of the base, so what was installed is taken out
        facts = message.facts
        found = await asyncio.to_thread(
            self._training.statistics, facts["needs"], facts["batches"], facts["batch_size"], facts["seed"]
        )
        self._say("sent statistics of its data, for the choice of weights")
        return statistics_message(found)

    async def _install(self, message: Message) -> Message:
        facts, tensors = message.facts, message.tensors
        support = read_support(facts["support"], tensors)
        head = {name.removeprefix("head/"): value for name, value in tensors.items() if name.startswith("head/")}
        self._version = None
        await asyncio.to_thread(self._training.install, support, facts["step"], facts["sizes"], head)
        self._run, self._version = str(facts["run"]), 0
        self._say(f"installed {support}")
        return Message("installed", {"run": self._run})

    async def _task(self, message: Message, arrived: float) -> Message:
        facts = message.facts
        stamp = {"run": facts["run"], "round": facts["round"], "version": facts["version"]}
        if not self._take_up(message):
            return Message("unready", {**stamp, "holds": [self._run, self._version]})
        seconds = float(facts["expires_in"])

        def check() -> None:
            if time.monotonic() > arrived + seconds:
                raise Expired

        job = Job(**facts["job"] | {name: tuple(facts["job"][name]) for name in ("blocks", "idle")})
        started = time.monotonic()
        try:
            check()
            trained = await self._watched(partial(self._training.train, job, check), seconds)
            check()
        except Expired:
            self._say(f"round {job.round}: its time was over, nothing is sent")
            return Message("expired", stamp)
        spent = time.monotonic() - started
        self._say(f"round {job.round}: blocks {list(job.blocks)}, loss {trained.loss:.4f}, {spent:.2f} s")
        kind = answer_kind(facts["upload"], job.local_steps)
        sent = coded(kind, facts["upload"], trained.tensors, self._training.values)
        more = {"tokens": trained.tokens, "loss": _finite(trained.loss), "seconds": spent}
        return Message(kind, {**stamp, **more}, sent)

    async def _finish(self, message: Message) -> Message:
        held = self._take_up(message)
        self._done.set()
        return Message("bye", {"run": message.facts["run"], "version": self._version if held else None})

    def _take_up(self, message: Message) -> bool:
        """Takes the message's values up, unless they add to a version that this device does not hold."""
        facts = message.facts
        if self._version is None or facts["run"] != self._run:
            return False
        if not facts["since"] <= self._version <= facts["version"]:
            return False
        self._training.receive(message.tensors)
        self._version = int(facts["version"])
        return True

    async def _watched(self, work: Callable[[], Any], seconds: float) -> Any:
        """Runs ``work`` in a thread, so that the link stays alive meanwhile, and reports one that hangs."""
        task = asyncio.ensure_future(asyncio.to_thread(work))
        done, _ = await asyncio.wait([task], timeout=max(1.0, self._patience * seconds))
        if not done and self._on_hung is not None:
            self._say(f"training still runs after {self._patience * seconds:.0f} s: it hangs")
            self._on_hung()
        return await task


def _finite(loss: float) -> float | None:
    """JSON knows no NaN: None stands for it."""
    return loss if abs(loss) < float("inf") else None
