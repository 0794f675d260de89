"""Shared by the tests of tune and its neighbors."""

from __future__ import annotations

import os
import signal

OFTEN = ("--checkpoint-every", "3")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(module, name, *, after=False, call=1, by=kill):
    """In the child: the ``call``-th call of a function of ours is its end, before or after the function ran."""

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
