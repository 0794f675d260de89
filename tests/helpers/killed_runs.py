"""Kills at exact points of a run, for the tests of tune and its neighbors."""

from __future__ import annotations

import os
import signal

OFTEN = ("--checkpoint-every", "3")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(module, name, *, after=False, call=1, by=kill):
    """Return a function for a child process: it makes the ``call``-th call of a function end the process.

    The process ends before the function runs, or with ``after`` when it has run.
    """

    def arrange():
        original, calls = getattr(module, name), iter(range(1, 1000))

        def last(*arguments, **named):
            now = next(calls) == call
            if now and not after:
                by()
            result = original(*arguments, **named)
            if now:
                by()
            return result

        setattr(module, name, last)

    return arrange
