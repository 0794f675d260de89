"""Send one task to a device and validate its answer. The state of the run is only read here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from taskedge.cooperation.coordinator.device_sessions import DeviceSession
from taskedge.cooperation.coordinator.run_state import RunState
from taskedge.cooperation.protocol.bounds import short_reason
from taskedge.cooperation.protocol.flat_tensors import are_finite
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.quantization import QuantizedAnswer, answer_kind
from taskedge.cooperation.protocol.round_task import RoundTask, TrainingRecipe
from taskedge.cooperation.protocol.validation import (
    MAX_CHANGE,
    MAX_GRADIENT,
    AcceptedAnswer,
    AnswerRefused,
    ExpectedAnswer,
    check_finite,
    check_form,
    check_update_size,
)
from taskedge.cooperation.transport.links import CoordinatorLink, DeviceGone, NoAnswer
from taskedge.cooperation.transport.reader_thread import READER
from taskedge.training.data_order import derive_seed


@dataclass(frozen=True)
class TaskOutcome:
    """The outcome of one task."""

    result: Literal["accepted", "refused", "late", "gone", "unready"]
    reason: str = ""
    """Why the answer was not accepted."""
    answer: AcceptedAnswer | None = None
    """Set if ``result`` is ``accepted``."""
    seconds: float = 0.0
    """From sending the task to its outcome."""
    bytes_down: int = 0
    bytes_up: int = 0
    """On the link, before encryption."""
    session_id: int = 0
    """Session of the device that got the task."""


def complete_task(task: RoundTask, state: RunState, accumulate: int) -> RoundTask:
    """Return a planned task with the fields that its device needs: idle names, seed, batches per local step."""
    training = set(state.training.names_in(task.blocks))
    names = state.blocks.names_in(task.blocks)
    idle = tuple(i for i, name in enumerate(names) if name not in training)
    return replace(task, idle=idle, seed=derive_seed(state.config.seed, task.device), accumulate=accumulate)


async def dispatch_task(
    link: CoordinatorLink,
    run_id: str,
    session: DeviceSession,
    task: RoundTask,
    state: RunState,
    round_number: int,
    *,
    deadline: float,
    max_tokens: int,
    nominal: Mapping[str, float],
) -> TaskOutcome:
    """Send one task, wait for the answer and validate it.

    Args:
        link: The coordinator's end.
        run_id: Id of the run.
        session: The device.
        task: A task from :func:`complete_task`.
        state: State of the run; it is not changed.
        round_number: The current round.
        deadline: Seconds until the answer must be here.
        max_tokens: Most tokens in a row, as a bound for the weight that the device claims.
        nominal: Planned costs of the task (``emulated.NOMINAL_FIELDS``), which an emulated device keeps to.
    """
    message = task_message(run_id, session.version or 0, task, state, round_number, deadline, nominal)
    limits = expected_answer(run_id, task, state, round_number, max_tokens).limits
    session_id = session.session_id
    started, bytes_before = time.monotonic(), _num_bytes(link, session.name)
    try:
        answer = await link.request(session.name, message, deadline, limits)
    except NoAnswer:
        outcome = TaskOutcome("late", "no answer in time")
    except DeviceGone:
        outcome = TaskOutcome("gone")
    except MessageError as error:
        outcome = TaskOutcome("refused", short_reason(f"no message: {error}"))
    else:
        judge = partial(answer_outcome, answer, run_id, task, state, round_number, max_tokens)
        outcome = await READER.run(judge)
    seconds, bytes_after = time.monotonic() - started, _num_bytes(link, session.name)
    return replace(
        outcome,
        seconds=seconds,
        bytes_down=bytes_after[0] - bytes_before[0],
        bytes_up=bytes_after[1] - bytes_before[1],
        session_id=session_id,
    )


def answer_outcome(
    answer: Message, run_id: str, task: RoundTask, state: RunState, round_number: int, max_tokens: int
) -> TaskOutcome:
    """Return the outcome of a task by the device's answer. Arguments: see :func:`dispatch_task`.

    Never raises: whatever an answer makes the checks do, it is that answer that is refused.
    """
    if answer.kind == "expired":
        return TaskOutcome("late", answer.kind)
    if answer.kind == "unready":
        return TaskOutcome("unready", answer.kind)
    try:
        accepted = validate_answer(answer, run_id, task, state, round_number, max_tokens)
        return TaskOutcome("accepted", answer=accepted)
    except AnswerRefused as error:
        return TaskOutcome("refused", short_reason(error))
    except Exception as error:
        return TaskOutcome("refused", short_reason(f"it cannot be checked ({type(error).__name__}: {error})"))


def validate_answer(
    answer: Message, run_id: str, task: RoundTask, state: RunState, round_number: int, max_tokens: int
) -> AcceptedAnswer:
    """Return the dequantized content of an answer that may be used. Arguments: see :func:`dispatch_task`.

    Raises:
        AnswerRefused: It may not be used. The message is the reason.
    """
    expected = expected_answer(run_id, task, state, round_number, max_tokens)
    checked = check_form(answer, expected)
    as_sent = QuantizedAnswer(expected.kind, checked.tensors, state.values)
    values = as_sent.flat()
    if not are_finite([values]):  # what was sent, or the product of a finite number and a finite scale
        check_finite(as_sent.layout.split(values))
    norms = state.norms_of_flat(as_sent.layout, values)
    sizes = state.sizes_of(as_sent.layout.names)
    check_update_size(norms, sizes, MAX_CHANGE if state.config.sends_values else MAX_GRADIENT)
    rows = state.config.batch_size * task.accumulate * state.config.local_steps
    return replace(checked, tensors=as_sent, device=task.device, rows=rows, norms=norms)


def expected_answer(
    run_id: str, task: RoundTask, state: RunState, round_number: int, max_tokens: int
) -> ExpectedAnswer:
    """Return the form that the answer to a task must have. Arguments: see :func:`dispatch_task`."""
    config = state.config

    def make() -> ExpectedAnswer:
        return ExpectedAnswer(
            kind=answer_kind(config.upload, config.local_steps),
            run=run_id,
            round=round_number,
            version=state.version,
            shapes={name: state.values[name].shape for name in state.training.names_in(task.blocks)},
            max_tokens=config.batch_size * task.accumulate * config.local_steps * max_tokens,
            upload=config.upload,
        )

    return state.shared((run_id, round_number, max_tokens, task.blocks, task.accumulate), make)


def task_message(
    run_id: str,
    version: int,
    task: RoundTask,
    state: RunState,
    round_number: int,
    deadline: float,
    nominal: Mapping[str, float],
) -> Message:
    """Return the message of a task, with the values that changed since the ``version`` that the device has."""
    config = state.config
    lr_factor = config.lr_factor(round_number)
    recipe = TrainingRecipe(
        round=round_number,
        batch_size=config.batch_size,
        local_steps=config.local_steps,
        optimizer=config.local_optimizer,
        lr=lr_factor * config.lr,
        head_lr=lr_factor * (config.lr if config.head_lr is None else config.head_lr),
        weight_decay=config.weight_decay,
    )
    header = {
        "run": run_id,
        "round": round_number,
        "version": state.version,
        "since": version,
        "expires_in": deadline,
        "job": task.header(recipe),
        "upload": config.upload,
        **nominal,
    }
    return Message("task", header, state.values_since(version))


def _num_bytes(link: CoordinatorLink, device: str) -> tuple[int, int]:
    """Return the bytes sent to a device and received from it so far."""
    down, up = link.traffic(device)
    return sum(down.bytes.values()), sum(up.bytes.values())
