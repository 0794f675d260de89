"""One task: what is sent to a device, what comes back, and whether it may be used."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.device_sessions import Member
from taskedge.cooperation.coordinator.run_state import RunState
from taskedge.cooperation.device.local_training import Job
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.quantization import answer_kind, decoded
from taskedge.cooperation.protocol.validation import Accepted, Expected, Refused, check_finite, checked
from taskedge.cooperation.scheduling.round_tasks import Share
from taskedge.cooperation.transport.links import CoordinatorLink, DeviceGone, NoAnswer, Traffic
from taskedge.training.seeds import derive


@dataclass(frozen=True)
class Returned:
    """What became of one task."""

    result: str
    """``accepted``, ``refused``, ``late``, ``gone`` or ``unready``."""
    why: str = ""
    accepted: Accepted | None = None
    norms: dict[int, float] = field(default_factory=dict)
    """Of the update, per block, where it was accepted."""
    seconds: float = 0.0
    """From the task's leaving to its end."""
    bytes_down: int = 0
    bytes_up: int = 0
    """On the link, before encryption."""
    visit: int = 0
    """The device's, in which it got the task."""


async def exchange(
    link: CoordinatorLink,
    run: str,
    member: Member,
    share: Share,
    state: RunState,
    round_number: int,
    *,
    accumulate: int,
    deadline: float,
    most_tokens: int,
    stated: Mapping[str, float],
) -> Returned:
    """Sends one task and judges the answer; nothing of the run is changed.

    Args:
        accumulate: batches per local step of this device.
        deadline: seconds, for the answer to be here.
        most_tokens: what a row can hold at most, as a bound for the weight that the device claims.
        stated: what the plan takes the device's part for, by ``emulate.STATED``: a device that emulates keeps to it.
    """
    message = task_message(run, member.holds or 0, share, state, round_number, accumulate, deadline, stated)
    before, started, visit = _bytes(link.traffic(member.name)), time.monotonic(), member.visit

    def ended(
        result: str, why: str = "", accepted: Accepted | None = None, norms: dict[int, float] | None = None
    ) -> Returned:
        down, up = (now - then for now, then in zip(_bytes(link.traffic(member.name)), before, strict=True))
        return Returned(result, why, accepted, norms or {}, time.monotonic() - started, down, up, visit)

    try:
        answer = await link.ask(member.name, message, deadline)
    except NoAnswer:
        return ended("late", "no answer in time")
    except DeviceGone:
        return ended("gone")
    except MessageError as error:
        return ended("refused", f"no message: {error}")
    if answer.kind in ("expired", "unready"):
        return ended("late" if answer.kind == "expired" else "unready", answer.kind)
    try:
        accepted = judged(answer, run, share, state, round_number, accumulate=accumulate, most_tokens=most_tokens)
    except Refused as reason:
        return ended("refused", str(reason))
    return ended("accepted", "", accepted, state.norms_of(accepted))


def judged(
    answer: Message,
    run: str,
    share: Share,
    state: RunState,
    round_number: int,
    *,
    accumulate: int,
    most_tokens: int,
) -> Accepted:
    """What an answer to a task holds, decoded, if it may be used; the arguments are those of :func:`exchange`.

    Raises:
        Refused: with the reason.
    """
    s = state.settings
    expected = Expected(
        kind=answer_kind(s.upload, s.local_steps),
        run=run,
        round=round_number,
        version=state.version,
        shapes={name: state.values[name].shape for name in state.training.of(share.blocks)},
        most_tokens=s.batch_size * accumulate * s.local_steps * most_tokens,
        upload=s.upload,
    )
    sent = checked(answer, expected)
    accepted = replace(sent, tensors=decoded(expected.kind, sent.tensors, state.values))
    check_finite(accepted.tensors)  # finite numbers may have an infinite product
    state.norms.check(state.norms_of(accepted))
    return accepted


def task_message(
    run: str,
    holds: int,
    share: Share,
    state: RunState,
    round_number: int,
    accumulate: int,
    deadline: float,
    stated: Mapping[str, float],
) -> Message:
    """What a device is asked in a round, with the values that changed since the version it ``holds``."""
    s: CooperateSettings = state.settings
    factor = s.rate(round_number)
    job = Job(
        blocks=share.blocks,
        round=round_number,
        seed=derive(s.seed, share.device),
        batch_size=s.batch_size,
        accumulate=accumulate,
        local_steps=s.local_steps,
        optimiser=s.local_optimiser,
        lr=factor * s.lr,
        head_lr=factor * (s.lr if s.head_lr is None else s.head_lr),
        weight_decay=s.weight_decay,
        idle=_idle(share, state),
    )
    facts = {
        "run": run,
        "round": round_number,
        "version": state.version,
        "since": holds,
        "expires_in": deadline,
        "job": job.facts(),
        "upload": s.upload,
        **stated,
    }
    return Message("task", facts, state.since(holds))


def _idle(share: Share, state: RunState) -> tuple[int, ...]:
    """Places of the names in these blocks that do not train in this round."""
    training = set(state.training.of(share.blocks))
    return tuple(n for n, name in enumerate(state.blocks.of(share.blocks)) if name not in training)


def _bytes(traffic: tuple[Traffic, Traffic]) -> tuple[int, int]:
    return sum(traffic[0].bytes.values()), sum(traffic[1].bytes.values())
