"""The tasks of a server: which there are, where their files lie, and how they come and go.

A new file is checked in full before the task it replaces goes. A file that fails leaves everything as it was.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from taskedge.delta.delta import check_name
from taskedge.delta.file import load
from taskedge.errors import DeltaError, InputError, TaskEdgeError, did_you_mean
from taskedge.io.atomic import atomic_file
from taskedge.serving.engine import Engine
from taskedge.serving.served_base import ServedBase
from taskedge.serving.served_task import ServedTask, served_task

SUFFIX = ".safetensors"
LEFTOVER_SECONDS = 600.0
_Stamp = tuple[int, int, int]


class UnknownTask(InputError):
    """A name that no served task has."""


class ServedTasks:
    """The tasks by name, safe to use from several threads.

    A delta for several tasks gives one task for each head, named ``FILE.HEAD``.

    Args:
        base: the base of all tasks.
        engine: runs the checks between two batches.
        folder: files ``NAME.safetensors`` here are tasks; new tasks are stored here. None: tasks are in memory only.
        log: called with an event and its fields.
    """

    def __init__(
        self,
        base: ServedBase,
        engine: Engine,
        folder: Path | None = None,
        log: Callable[..., object] = lambda *_, **__: None,
    ) -> None:
        self.base, self.engine, self.folder = base, engine, folder
        self._log = log
        self._tasks: dict[str, ServedTask] = {}
        self._of_file: dict[str, list[str]] = {}
        self._errors: dict[str, str] = {}
        self._stamps: dict[str, _Stamp] = {}
        self._changing = threading.RLock()

    @property
    def errors(self) -> dict[str, str]:
        """Why files in the folder are no tasks now, by name."""
        return dict(self._errors)

    def all(self) -> list[ServedTask]:
        """Return the tasks, sorted by name."""
        return [task for _, task in sorted(self._tasks.items())]

    def get(self, name: str) -> ServedTask:
        """Return a task.

        Raises:
            UnknownTask: there is none of that name.
        """
        tasks = self._tasks
        if name not in tasks:
            raise UnknownTask(f"there is no task {name!r}{did_you_mean(name, tasks)}: GET /v1/tasks lists all")
        return tasks[name]

    def add(self, name: str, path: Path) -> list[ServedTask]:
        """Check a delta file, and serve it under a name, in place of tasks that came from a file of that name.

        Raises:
            TaskEdgeError: the file cannot be served. Nothing has changed.
        """
        check_name("task", name)
        with self._changing:
            size = path.stat().st_size if path.is_file() else 0
            tasks = self._checked(name, path, str(path), size)
            self._replace(name, tasks)
        return tasks

    def put(self, name: str, content: bytes) -> list[ServedTask]:
        """Check the bytes of a delta file, store it in the folder, if there is one, and serve it.

        After the return the task survives a crash, if there is a folder.

        Raises:
            TaskEdgeError: the content cannot be served or stored. Nothing has changed.
        """
        check_name("task", name)
        with self._changing:
            if self.folder is None:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, name)
                    path.write_bytes(content)
                    tasks = self._checked(name, path, "", len(content))
            else:
                stored = self.folder / f"{name}{SUFFIX}"
                with atomic_file(stored) as path:
                    path.write_bytes(content)
                    tasks = self._checked(name, path, str(stored), len(content))
                self._stamps[name] = _stamp(stored)
            self._replace(name, tasks)
        return tasks

    def remove(self, name: str) -> list[str]:
        """Stop serving the tasks of a file, and delete it if it lies in the folder; return the tasks' names.

        Raises:
            UnknownTask: no file has that name.
        """
        with self._changing:
            if name not in self._of_file:
                raise UnknownTask(
                    f"there is no task file {name!r}{did_you_mean(name, self._of_file)}: a task of a file for several "
                    "tasks is removed with its file"
                )
            if self.folder is not None:
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / f"{name}{SUFFIX}").unlink()
            self._stamps.pop(name, None)
            names = self._of_file[name]
            self._replace(name, [])
            return names

    def scan(self) -> None:
        """Take up what has changed in the folder since the last call; faults are logged and shown, never raised."""
        if self.folder is None:
            return
        with self._changing:
            try:
                paths = [path for path in sorted(self.folder.glob(f"*{SUFFIX}")) if not path.name.startswith(".")]
                found = {path.stem: path for path in paths}
                stamps = {name: _stamp(path) for name, path in found.items()}
            except OSError as error:
                self._log("folder unreadable", folder=str(self.folder), error=str(error))
                return
            for name in [name for name in self._stamps if name not in stamps]:
                del self._stamps[name]
                self._errors.pop(name, None)
                if name in self._of_file:
                    self._replace(name, [])
            for name, stamp in stamps.items():
                if self._stamps.get(name) == stamp:
                    continue
                self._stamps[name] = stamp
                try:
                    self.add(name, found[name])
                except (TaskEdgeError, OSError) as error:
                    self._errors[name] = str(error)
                    kept = "the task served so far stays" if name in self._of_file else "it is not served"
                    self._log("task refused", task=name, error=str(error), consequence=kept)

    def _checked(self, name: str, path: Path, file: str, size: int) -> list[ServedTask]:
        """Return the tasks of a file, checked against the base."""
        try:
            delta = load(path)
            parts = {f"{name}.{head}": delta.with_head(head) for head in delta.heads} or {name: delta}
            others = {task for key, names in self._of_file.items() if key != name for task in names}
            for part in parts:
                check_name("task", part)
                if part in others:
                    raise InputError(f"a task {part!r} from another file is served: give the file another name")
            return self.engine.run(  # type: ignore[no-any-return]
                lambda: [served_task(part, one, self.base, file=file, file_bytes=size) for part, one in parts.items()]
            )
        except TaskEdgeError as error:
            message = str(error).replace(f"{path}: ", "").replace(str(path), name)
            raise DeltaError(f"task {name!r}: {message}") from None
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
            raise DeltaError(f"task {name!r}: the base cannot run it ({type(error).__name__}: {error})") from error

    def _replace(self, name: str, tasks: Iterable[ServedTask]) -> None:
        """Serve these tasks of a file and none of its former ones; readers see all of the change or nothing."""
        former = self._of_file.pop(name, [])
        new = {task.name: task for task in tasks}
        changed = {key: task for key, task in self._tasks.items() if key not in former} | new
        self._tasks = changed
        if new:
            self._of_file[name] = list(new)
            self._errors.pop(name, None)
        for task in new.values():
            self._log("task served", task=task.name, file=task.file, bytes=task.memory_bytes, alone=task.alone)
        for gone in set(former) - set(new):
            self._log("task removed", task=gone)

    def describe(self) -> dict[str, Any]:
        """Return what ``/v1/tasks`` shows, JSON-able."""
        return {
            "base": self.base.name,
            "tasks": [task.describe() for task in self.all()],
            "refused": [{"name": name, "error": error} for name, error in sorted(self._errors.items())],
        }


def remove_leftovers(folder: Path, older_than: float = LEFTOVER_SECONDS) -> list[str]:
    """Delete what killed uploads left in a folder of tasks, and return the files' names.

    Args:
        folder: the folder.
        older_than: seconds since the last change; a younger file may be an upload that runs.
    """
    removed = []
    for path in folder.glob(f".*{SUFFIX}.*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > older_than:
                path.unlink()
                removed.append(path.name)
    return removed


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
