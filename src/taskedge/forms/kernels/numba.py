"""The fast CPU kernel: one pass over dY with numba, four tokens at a time.

The first entries of all rows are walked in row order, so that dY and the sums are read and written contiguously;
entries beyond the even part of the support take their row from an index. Rows are dealt out to threads whole, so
the result does not depend on which thread is faster.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taskedge.forms.kernels import DTYPES, KERNELS, EntryIndex, sum_dtype

Array = npt.NDArray[Any]


class Numba:
    """Needs the extra ``fast``; without it, or off the CPU, it does not serve."""

    def serves(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> bool:
        return _is_installed() and grad_output.device.type == "cpu" and grad_output.dtype in DTYPES

    def __call__(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
        precise = sum_dtype(grad_output.dtype)
        dy = grad_output.to(precise).contiguous().numpy()
        x = columns.to(precise).contiguous().numpy()
        parts = []
        for rows, among in _passes(index):
            part = np.zeros(len(among), dtype=dy.dtype)
            kernel = _compiled()[0 if rows is None else 1]
            given = among if rows is None else rows  # rows in order are not looked at
            _in_threads(lambda low, high: kernel(dy, x, given, among, part, low, high), len(among))  # noqa: B023
            parts.append(torch.from_numpy(part))
        return index.joined(parts, precise)


def _passes(index: EntryIndex) -> list[tuple[Array | None, Array]]:
    """Rows and columns of the index's passes, int32 and kept with it."""
    found: list[tuple[Array | None, Array]] | None = getattr(index, "_numba_passes", None)
    if found is None:
        found = [
            (None if one.rows is None else one.rows.int().numpy(), one.columns.int().numpy()) for one in index.passes
        ]
        index._numba_passes = found  # type: ignore[attr-defined]
    return found


def _in_threads(work: Callable[[int, int], None], length: int) -> None:
    """``work(low, high)`` over 0..length in as many parts as torch has threads; numba code runs without the GIL."""
    threads = min(torch.get_num_threads(), max(length // 64, 1))
    if threads == 1:
        work(0, length)
        return
    edges = [length * part // threads for part in range(threads + 1)]
    list(_pool(threads, os.getpid()).map(work, edges[:-1], edges[1:]))


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool per size and process: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="taskedge-kernel")


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None


@cache
def _compiled() -> tuple[Any, Any]:
    """The two compiled loops: rows in order, and rows by index. Compiled once, then read from numba's cache."""
    import numba

    options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        compile_ = numba.njit(**options, cache=True)
        return compile_(_rows_in_order), compile_(_rows_by_index)
    except RuntimeError:  # no folder to keep the compiled code in: compile in every process
        compile_ = numba.njit(**options)
        return compile_(_rows_in_order), compile_(_rows_by_index)


# Both loop over slices, from 0: for an index that counts from ``low`` numba must ask each time whether it is negative,
# which costs a third of the loop.


def _rows_in_order(dy: Any, x: Any, rows: Any, among: Any, sums: Any, low: int, high: int) -> None:
    among, sums = among[low:high], sums[low:high]
    tokens = dy.shape[0]
    whole = tokens - tokens % 4
    for t in range(0, whole, 4):
        dy0, dy1, dy2, dy3 = dy[t, low:high], dy[t + 1, low:high], dy[t + 2, low:high], dy[t + 3, low:high]
        for i in range(len(among)):
            c = among[i]
            pair = dy0[i] * x[t, c] + dy1[i] * x[t + 1, c]
            sums[i] += pair + dy2[i] * x[t + 2, c] + dy3[i] * x[t + 3, c]
    for t in range(whole, tokens):
        for i in range(len(among)):
            sums[i] += dy[t, low + i] * x[t, among[i]]


def _rows_by_index(dy: Any, x: Any, rows: Any, among: Any, sums: Any, low: int, high: int) -> None:
    rows, among, sums = rows[low:high], among[low:high], sums[low:high]
    tokens = dy.shape[0]
    whole = tokens - tokens % 4
    for t in range(0, whole, 4):
        for i in range(len(among)):
            r, c = rows[i], among[i]
            pair = dy[t, r] * x[t, c] + dy[t + 1, r] * x[t + 1, c]
            sums[i] += pair + dy[t + 2, r] * x[t + 2, c] + dy[t + 3, r] * x[t + 3, c]
    for t in range(whole, tokens):
        for i in range(len(among)):
            sums[i] += dy[t, rows[i]] * x[t, among[i]]


KERNELS.add("numba", Numba())
