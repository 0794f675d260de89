"""The engine: one thread that runs the model, on batches of rows of different tasks.

Rows wait in one queue of limited length. The thread takes the oldest row and all others that can share a batch with it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from taskedge.errors import InputError, TaskEdgeError
from taskedge.serving.generating import GeneratedRow, generate_rows
from taskedge.serving.served_task import ServedTask, logits_of
from taskedge.training.data.text_data import Row, evaluating
from taskedge.training.guard import guarded
from taskedge.training.tasks.text_generation import TextGeneration
from taskedge.training.tasks.text_to_text import TextToText
from taskedge.training.tasks.token_classification import TokenClassification


class Overloaded(TaskEdgeError):
    """A queue without room for more rows."""


class DeadlinePassed(TaskEdgeError):
    """A row that was not answered in time."""


class Stopped(TaskEdgeError):
    """An engine that has stopped."""


@dataclass(frozen=True)
class EngineLimits:
    """Limits of the engine.

    Attributes:
        max_rows: rows of one batch.
        max_tokens: tokens of one batch, padding included.
        max_waiting: rows in the queue.
    """

    max_rows: int = 64
    max_tokens: int = 8192
    max_waiting: int = 1024


@dataclass(eq=False)
class Work:
    """One row to answer.

    Attributes:
        task: the task, as it was when the request came: a later change of the task has no effect on it.
        row: the encoded row.
        deadline: ``time.monotonic()`` after which nobody waits for the answer.
        new_tokens: largest number of generated tokens; 0 for the task's own.
        on_text: called with the text of a response so far, in the engine's thread.
        answer: the answer, JSON-able.
        cancelled: set when nobody waits any more.
    """

    task: ServedTask
    row: Row
    deadline: float
    new_tokens: int = 0
    on_text: Callable[[str], object] | None = None
    answer: Future[dict[str, Any]] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.answer.set_running_or_notify_cancel()  # from here on only the engine ends it

    @property
    def num_tokens(self) -> int:
        """Tokens of the row; 1 for an image."""
        if self.generates:
            return len(self.read) + (self.new_tokens or self.task.task.new_tokens)  # type: ignore[attr-defined]
        return len(self.row.get("input_ids", (0,)))

    @property
    def generates(self) -> bool:
        """Whether the answer is a generated text."""
        return isinstance(self.task.task, TextGeneration | TextToText)

    @property
    def read(self) -> Sequence[int]:
        """The tokens that the model reads before it generates."""
        tokens: Sequence[int] = self.row["prompt" if isinstance(self.task.task, TextGeneration) else "input_ids"]
        return tokens

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Equal for works that can share a batch."""
        shape = tuple(self.row["pixel_values"].shape) if "pixel_values" in self.row else ()
        length = 0
        if not self.task.view.mixes_lengths:
            length = len(self.read if self.generates else self.row["input_ids"])
        return self.task.view.kind, id(self.task) if self.task.alone else 0, length, shape, self.generates


Job = Callable[[], Any]


class Engine:
    """Answers rows in a thread of its own.

    Args:
        limits: of batches and of the queue.
        on_batch: called with the works of each batch and its seconds.
    """

    def __init__(
        self, limits: EngineLimits = EngineLimits(),
        on_batch: Callable[[Sequence[Work], float], object] = lambda _works, _seconds: None,
    ) -> None:  # fmt: skip
        self.limits = limits
        self._on_batch = on_batch
        self._waiting: deque[Work] = deque()
        self._jobs: deque[tuple[Job, Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Rows in the queue."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, works: Sequence[Work]) -> None:
        """Put the rows of one request into the queue, all or none.

        Raises:
            Overloaded: there is no room for them.
            Stopped: the engine has stopped.
        """
        with self._changed:
            if self._stopping:
                raise Stopped("the server is stopping: send the request again later")
            if len(self._waiting) + len(works) > self.limits.max_waiting:
                raise Overloaded(
                    f"{len(self._waiting)} rows wait, and at most {self.limits.max_waiting} may: send the request "
                    "again later"
                )
            self._waiting.extend(works)
            self._changed.notify()

    def run(self, job: Job) -> Any:
        """Run a function between two batches, in the engine's thread, and return its result.

        Raises:
            Stopped: the engine has stopped.
        """
        done: Future[Any] = Future()
        with self._changed:
            if self._stopping:
                raise Stopped("the server is stopping: send the request again later")
            self._jobs.append((job, done))
            self._changed.notify()
        return done.result()

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._jobs or self._stopping):
                    self._changed.wait()
                if not self._waiting and not self._jobs:
                    return
                jobs, works = list(self._jobs), [] if self._jobs else self._next_batch()
                self._jobs.clear()
            for job, done in jobs:
                try:
                    done.set_result(job())
                except BaseException as error:
                    done.set_exception(error)
            try:
                self._answer(works)
            except Exception as error:  # the thread must not end with a batch
                for work in works:
                    self._fail(work, error)

    def _next_batch(self) -> list[Work]:
        """Take the oldest row and those that can share a batch with it out of the queue."""
        batch: list[Work] = []
        longest, rest = 0, deque[Work]()
        for work in self._waiting:
            fits = not batch or (
                len(batch) < self.limits.max_rows
                and work.batch_key == batch[0].batch_key
                and max(longest, work.num_tokens) * (len(batch) + 1) <= self.limits.max_tokens
            )
            if fits:
                batch.append(work)
                longest = max(longest, work.num_tokens)
            else:
                rest.append(work)
        self._waiting = rest
        return batch

    def _answer(self, works: Sequence[Work]) -> None:
        works = [work for work in works if self._is_wanted(work)]
        if not works:
            return
        started = time.monotonic()
        try:
            answers = self._answers(works)
        except Exception as error:
            if len(works) == 1:
                self._fail(works[0], error)
            else:
                for work in works:  # the others do not suffer from one that fails
                    self._answer([work])
            return
        for work, answer in zip(works, answers, strict=True):
            if not work.answer.done():
                work.answer.set_result(answer)
        self._on_batch(works, time.monotonic() - started)

    def _is_wanted(self, work: Work) -> bool:
        if work.cancelled.is_set():
            self._fail(work, DeadlinePassed("nobody waits for the answer any more"))
        elif time.monotonic() > work.deadline:
            self._fail(work, DeadlinePassed("the request was not answered in time: send fewer or shorter rows"))
        return not work.answer.done()

    @staticmethod
    def _fail(work: Work, error: Exception) -> None:
        if not work.answer.done():
            work.answer.set_exception(error)

    def _answers(self, works: Sequence[Work]) -> list[dict[str, Any]]:
        return _generated(works) if works[0].generates else _computed(works)


def _computed(works: Sequence[Work]) -> list[dict[str, Any]]:
    """Return the answers of one forward pass."""
    view, first = works[0].task.view, works[0].task
    rows = [work.row for work in works]

    def collate(chosen: list[Row]) -> dict[str, torch.Tensor]:
        if "pixel_values" in chosen[0]:
            return {"pixel_values": torch.stack([row["pixel_values"] for row in chosen])}
        return first.task.collate(view.base)(chosen)

    tags = isinstance(first.task, TokenClassification)
    with guarded(view.base.model, rows, range(len(rows)), collate):
        logits = logits_of(view, collate(rows), [work.task.table for work in works], first.delta).numpy()
    if tags and logits.ndim == 3:
        return [
            work.task.task.tags_of(view.base, part[:, : work.task.num_outputs], work.row)  # type: ignore[attr-defined]
            for work, part in zip(works, logits, strict=True)
        ]
    if logits.ndim != 2:
        raise InputError(f"the model gives outputs of shape {list(logits.shape)}: one row of numbers each is needed")
    return [
        work.task.task.answers(logits[index : index + 1, : work.task.num_outputs], [work.row])[0]  # type: ignore[attr-defined]
        for index, work in enumerate(works)
    ]


def _generated(works: Sequence[Work]) -> list[dict[str, Any]]:
    """Return the generated responses."""
    from contextlib import nullcontext

    from taskedge.delta.apply import applied

    view, first = works[0].task.view, works[0].task
    rows = [_generated_row(work) for work in works]
    tables = [work.task.table for work in works]
    as_rows = [{"input_ids": row.prompt} for row in rows]
    model = view.base.model
    with (
        evaluating(model),
        view.mixed.rows(tables),
        torch.inference_mode(False),
        torch.no_grad(),
        applied(model, first.delta) if first.delta is not None else nullcontext(),
    ):
        try:
            generate_rows(model, rows, view.base.tokenizer.pad_token_id)
        except RuntimeError as error:
            raise InputError(f"{len(as_rows)} rows cannot be generated ({error}): send shorter prompts") from error
    answers = []
    for work, row in zip(works, rows, strict=True):
        text = work.task.task.response_text(view.base, row.tokens)  # type: ignore[attr-defined]
        key, read = ("target", "source") if isinstance(work.task.task, TextToText) else ("response", "prompt")
        answers.append({key: text, "finish": row.finish, f"{read}_tokens": len(row.prompt), "tokens": len(row.tokens)})
    return answers


def _generated_row(work: Work) -> GeneratedRow:
    task, base = work.task.task, work.task.view.base
    assert isinstance(task, TextGeneration | TextToText)

    def on_token(tokens: list[int]) -> bool:
        if work.cancelled.is_set() or time.monotonic() > work.deadline:
            Engine._fail(work, DeadlinePassed("the response was not generated in time: ask for fewer tokens"))
            return False
        if work.on_text is not None:
            work.on_text(task.response_text(base, tokens))
        return True

    new_tokens = min(work.new_tokens or task.new_tokens, task.new_tokens)
    return GeneratedRow(work.read, frozenset(task.stop_ids(base)), new_tokens, on_token)
