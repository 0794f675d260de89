"""The cloud's end of the cut: it computes the blocks of one frozen base for many devices.

Each device has a session from the moment it is there until it leaves: its calibration batches, its plan, what idle
modules add, and at most one pass. A pass is a stack of calls in a thread: if its device leaves, does not answer in
time, or sends what the protocol does not allow, the call that waits for it raises, and with the stack everything that
was held is freed. Nothing of a device outlives its session, and no session reads another's.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from taskedge.backbone.fingerprint import base_digest
from taskedge.cooperation.cut.base_parts import BaseParts
from taskedge.cooperation.cut.choose_modules import Calibration, choose
from taskedge.cooperation.cut.cloud_base import CloudBase, Pass
from taskedge.cooperation.cut.compute_turns import ComputeTurns, Turn
from taskedge.cooperation.cut.cut_coding import CODINGS, coded_bytes
from taskedge.cooperation.cut.cut_messages import (
    PROTOCOL,
    CutRefused,
    as_bytes,
    check_message,
    from_bytes,
    limits_of,
    whole_number,
)
from taskedge.cooperation.cut.module_groups import Group, Plan, groups_of, read_plan
from taskedge.cooperation.cut.parked_modules import read_parked
from taskedge.cooperation.protocol.bounds import short_reason, short_text
from taskedge.cooperation.protocol.message import MAX_MESSAGE_BYTES, Message, MessageError, MessageLimits
from taskedge.cooperation.transport.links import CoordinatorLink, DeviceGone, NoAnswer
from taskedge.errors import TaskEdgeError

Log = Callable[[str], None]
_SMALL = MessageLimits(2**20, 0)
_IDLE_SECONDS = 86_400.0
"""Longest time in which a device may want nothing: it trains at its own pace."""


@dataclass(frozen=True)
class CloudLimits:
    """Limits of one cloud.

    Attributes:
        devices: sessions at once.
        tokens: of a batch, with padding.
        calibration_tokens: of all calibration batches of a session.
        seconds: longest wait for an answer within a pass; then the pass is dropped.
        refusals: refused messages after which a device is not served any more.
    """

    devices: int = 16
    tokens: int = 65_536
    calibration_tokens: int = 65_536
    seconds: float = 120.0
    refusals: int = 3


@dataclass
class Session:
    """A device's session.

    Attributes:
        device: its name, which the link has proved.
        token: drawn anew for each session.
        plan: its modules; empty before it has sent them.
        parked: what its idle modules add to outputs.
        calibration: its calibration batches so far.
        passes: passes that were completed.
    """

    device: str
    token: str
    plan: Plan = field(default_factory=dict)
    parked: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    passes: int = 0


class Cloud:
    """Serves devices over a link until it is cancelled.

    Args:
        link: the coordinator's end.
        base: what it computes.
        parts: the files that devices need.
        limits: see :class:`CloudLimits`.
        own_random: see :class:`~taskedge.cooperation.cut.compute_turns.ComputeTurns`.
        log: called with a line about each session.

    Attributes:
        sessions: by device.
        refusals: messages that were refused, by device.
    """

    def __init__(
        self,
        link: CoordinatorLink,
        base: CloudBase,
        parts: BaseParts,
        limits: CloudLimits | None = None,
        *,
        own_random: bool = True,
        log: Log = lambda _: None,
    ) -> None:
        self._link, self._base, self._parts, self._log = link, base, parts, log
        self.limits = limits or CloudLimits()
        self._turns = ComputeTurns(own_random=own_random)
        self.sessions: dict[str, Session] = {}
        self.refusals: Counter[str] = Counter()
        self._digest = base_digest(base.model, ())
        self._returns_tuple = _returns_tuple(base)

    async def serve(self) -> None:
        """Serve every device that is there or comes, until cancelled."""
        tasks: dict[str, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(self.limits.devices, thread_name_prefix="taskedge-cut")
        try:
            async for presence in self._link.presence():
                if presence.event == "flooded":
                    self._log(f"{presence.device}: {presence.why}")
                if presence.device in tasks:
                    await self._end_task(presence.device, tasks.pop(presence.device))
                if presence.event == "joined":
                    tasks[presence.device] = asyncio.create_task(self._serve_device(presence.device))
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _end_task(self, device: str, task: asyncio.Task[None]) -> None:
        session = self.sessions.get(device)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if session is not None:
            self._say_left(session)

    async def _serve_device(self, device: str) -> None:
        while self.refusals[device] < self.limits.refusals:
            session = Session(device, secrets.token_hex(8))
            try:
                if device not in self.sessions and len(self.sessions) >= self.limits.devices:
                    raise TaskEdgeError(f"{len(self.sessions)} devices are served already, the most: come later")
                self.sessions[device] = session
                await self._run_session(session)
                return
            except NoAnswer as error:
                self._log(f"{device}: {error}; its step is dropped, and it may start it again")
            except DeviceGone:
                self._say_left(session)
                return
            except (CutRefused, MessageError) as error:
                self.refusals[device] += 1
                self._log(f"{device}: refused: {short_reason(error)}")
                await self._tell_refused(session, str(error))
                return
            except TaskEdgeError as error:
                self._log(f"{device}: {short_reason(error)}")
                await self._tell_refused(session, str(error))
                return
            finally:
                if self.sessions.get(device) is session:
                    del self.sessions[device]
        self._log(f"{device}: is not served any more, after {self.refusals[device]} refused messages")
        await self._tell_refused(Session(device, ""), "too many refused messages: enrol the device anew, or restart")

    def _say_left(self, session: Session) -> None:
        self._log(f"{session.device}: left after {session.passes:,} passes; nothing of it is kept")

    async def _tell_refused(self, session: Session, why: str) -> None:
        with suppress(TaskEdgeError):
            message = Message("refused", {"session": session.token, "why": why[:1000]})
            await self._link.request(session.device, message, self.limits.seconds, _SMALL)

    async def _run_session(self, session: Session) -> None:
        await self._greet(session)
        while True:
            limits = self._limits_of_turn(session)
            request = Message("next", {"session": session.token})
            turn = await self._link.request(session.device, request, _IDLE_SECONDS, limits)
            kinds = ("calibrate", "choose", "plan", "pass", "done")
            check_message(turn, kinds, {"session": session.token})
            if turn.kind == "done":
                self._log(f"{session.device}: done, {session.passes:,} passes")
                return
            if turn.kind == "plan":
                session.plan, session.parked = read_plan(turn, self._base.shapes), {}
                self._log(f"{session.device}: trains {len(session.plan)} linears")
            elif turn.kind == "calibrate":
                hidden, mask = self._inputs(turn)
                session.calibration.add(hidden, mask, self.limits.calibration_tokens)
            elif turn.kind == "choose":
                await self._choose(session, turn)
            else:
                await self._in_thread(partial(self._run_pass, session, turn, asyncio.get_running_loop()))
                session.passes += 1

    async def _greet(self, session: Session) -> None:
        base = self._base
        facts = {
            "session": session.token,
            "protocol": PROTOCOL,
            "model": base.name,
            "base": self._digest,
            "layers": len(base.blocks),
            "width": base.width,
            "dtype": str(base.dtype).removeprefix("torch."),
            "stack": base.stack,
            "max_tokens": self.limits.tokens,
            "returns_tuple": self._returns_tuple,
            **self._parts.header,
        }
        hello = await self._link.request(session.device, Message("hello", facts), _IDLE_SECONDS, _SMALL)
        check_message(hello, ("hello",), {"session": session.token, "protocol": PROTOCOL}, ())
        if hello.header.get("parts") == self._parts.digest:
            return
        for index in range(len(self._parts.pieces)):
            piece = self._parts.message(index, {"session": session.token})
            answer = await self._link.request(session.device, piece, self.limits.seconds, _SMALL)
            check_message(answer, ("have",), {"session": session.token, "index": index}, ())

    def _limits_of_turn(self, session: Session) -> MessageLimits:
        """Return the largest message that a device may answer ``next`` with: inputs, a plan, or what it parks."""
        inputs = self.limits.tokens * (4 * self._base.width + 5)
        indices = sum(8 * sum(shape) for shape in self._base.shapes.values())
        parked = sum(4 * out * inputs for out, inputs in (module.shape for module in session.plan.values()))
        return limits_of(min(MAX_MESSAGE_BYTES, inputs + indices + parked), 2 + 2 * len(self._base.shapes))

    def _inputs(self, message: Message) -> tuple[Tensor, Tensor]:
        """Return embedded tokens [batch, length, width] and their mask, from a device's message."""
        shape, coding = message.header.get("shape"), message.header.get("coding")
        sound = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
        if not sound or shape[0] * shape[1] > self.limits.tokens:  # type: ignore[index]
            raise CutRefused(f"a batch of {short_text(shape)} tokens, and {self.limits.tokens:,} are the most")
        assert isinstance(shape, list)
        batch, length = shape
        if self._base.positions is not None and length > self._base.positions:
            raise CutRefused(f"texts of {length:,} tokens, and the base has {self._base.positions:,} positions")
        if not isinstance(coding, str) or coding not in CODINGS:
            raise CutRefused(f"the coding {short_text(coding)}, which is none of {', '.join(CODINGS)}")
        mask = message.tensors.get("mask")
        if mask is None or mask.dtype != torch.bool or list(mask.shape) != shape:
            raise CutRefused(f"a {message.kind!r} message whose mask is not bool {shape}")
        hidden = from_bytes(message, "inputs", (batch * length, self._base.width), coding)
        return hidden.view(batch, length, self._base.width), mask.to(torch.int64)

    async def _choose(self, session: Session, turn: Message) -> None:
        """Choose the weights that a device trains, by its settings and calibration batches, and tell it."""
        choosing = partial(choose, self._base, session.calibration, dict(turn.header), log=self._log)

        def work() -> Message:
            with self._turns.computing(0):
                return choosing()

        chosen = await self._in_thread(work)
        session.calibration = Calibration()
        message = Message(chosen.kind, {**chosen.header, "session": session.token}, chosen.tensors)
        answer = await self._link.request(session.device, message, self.limits.seconds, _SMALL)
        check_message(answer, ("taken",), {"session": session.token}, ())

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        """Run work that may wait for the device. If this task ends first, the work ends at its next question."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _run_pass(self, session: Session, turn: Message, loop: asyncio.AbstractEventLoop) -> None:
        """Run one pass of a device, in a thread."""
        header = turn.header
        number = whole_number(header, "pass", 1, 2**53)
        seed = whole_number(header, "seed", 0, 2**63 - 1)
        bits, trains = header.get("active"), header.get("trains")
        if not session.plan:
            raise CutRefused("a pass before the plan")
        if not isinstance(bits, str) or len(bits) != len(session.plan) or set(bits) - {"0", "1"}:
            raise CutRefused(f"a pass with the active modules {short_text(bits)}, of {len(session.plan)}")
        if type(trains) is not bool:
            raise CutRefused(f"a pass whose 'trains' is {short_text(trains)}")
        hidden, mask = self._inputs(turn)
        active = [name for name, bit in zip(session.plan, bits, strict=True) if bit == "1"]
        for name, adds in read_parked(turn, session.plan, set(active)).items():
            session.parked[name] = adds
        for name in active:
            session.parked.pop(name, None)
        asking = _Asking(self, session, number, str(header["coding"]), mask.numel(), loop)
        groups = groups_of(session.plan, active)
        with self._turns.computing(seed) as compute:
            cut = Pass(hidden, mask, groups, dict(session.parked), partial(asking.ask, compute))
            states = self._base.forward(cut, trains=trains)
            matrix = states.detach().flatten(0, -2)
            if not (trains and groups):
                asking.send(compute, "states", {}, matrix, "seen", None)
                return
            gradient = asking.send(compute, "states", {}, matrix, "gradient", (mask.numel(), self._base.width))
            assert gradient is not None
            states.backward(gradient.view(states.shape).to(states.device, states.dtype))  # type: ignore[no-untyped-call]


@dataclass
class _Asking:
    """Questions of one pass to its device."""

    cloud: Cloud
    session: Session
    number: int
    coding: str
    tokens: int
    loop: asyncio.AbstractEventLoop

    def ask(self, compute: Turn, kind: str, group: Group, matrix: Tensor, needed: bool) -> Tensor | None:
        """Send a group's columns or gradients, and return its products or what it adds to the input's gradient."""
        header = {"group": group.name}
        if kind == "columns":
            shape = (self.tokens, group.num_rows)
            return self.send(compute, kind, {**header, "needed": needed}, matrix, "products", shape)
        shape = (self.tokens, group.num_columns)
        return self.send(compute, kind, header, matrix, "input_gradients", shape if needed else None)

    def send(
        self,
        compute: Turn,
        kind: str,
        header: Mapping[str, Any],
        matrix: Tensor,
        answer_kind: str,
        shape: tuple[int, int] | None,
    ) -> Tensor | None:
        """Send a matrix and return that of the answer; None if it has none. Others compute meanwhile."""
        identity = {"session": self.session.token, "pass": self.number}
        message = Message(kind, {**identity, **header}, {"matrix": as_bytes(matrix, self.coding)})
        limits = _SMALL if shape is None else limits_of(coded_bytes(shape, self.coding))
        link, device, seconds = self.cloud._link, self.session.device, self.cloud.limits.seconds
        with compute.waiting():
            if self.cloud.sessions.get(device) is not self.session:
                raise DeviceGone(f"the session of {device!r} has ended")
            asked = asyncio.run_coroutine_threadsafe(link.request(device, message, seconds, limits), self.loop)
            answer = asked.result()
            check_message(answer, (answer_kind,), identity, () if shape is None else ("matrix",))
            return None if shape is None else from_bytes(answer, "matrix", shape, self.coding)


def _returns_tuple(base: CloudBase) -> bool:
    """Return whether the blocks return a tuple, from a pass of one token."""
    cut = Pass(torch.zeros(1, 1, base.width), torch.ones(1, 1, dtype=torch.int64))
    base.forward(cut, trains=False)
    return cut.returns_tuple
