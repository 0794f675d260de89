"""The fast CPU kernel: one pass over dY with numba, four tokens at a time.

The entries that every row has are walked in row order, so that dY and the sums are read and written contiguously; the
entries beyond those take their row from an index. Each thread gets whole rows, so the result does not depend on which
thread is faster.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskedge.forms.kernels import CPU_DTYPES, KERNELS, EntryIndex, sum_dtype

MIN_ENTRIES_PER_THREAD = 64

PRODUCT_COST = 10
"""Time of one product, in products of a matrix product (5 to 20 on one x86 core)."""


class Numba:
    """Needs the extra ``fast``; without it, or off the CPU, it supports no tensors."""

    def supports(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> bool:
        """Return whether numba is installed, the tensors are on the CPU and a thin product would cost more."""
        if grad_output.device.type != "cpu" or grad_output.dtype not in CPU_DTYPES or not _is_installed():
            return False
        return len(index.rows) * PRODUCT_COST < index.out_features * columns.shape[1]

    def __call__(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
        """Run the compiled loops over all passes; see :class:`Kernel`."""
        dtype = sum_dtype(grad_output.dtype)
        dy = grad_output.to(dtype).contiguous().numpy()
        x = columns.to(dtype).contiguous().numpy()
        rows_in_order, rows_by_index = _compiled()
        parts = []
        for entry_pass in index.passes:
            rows, stored_columns = entry_pass.arrays
            sums = np.zeros(len(stored_columns), dtype=dy.dtype)
            if rows is None:
                loop = partial(rows_in_order, dy, x, stored_columns, stored_columns, sums)  # it does not look at rows
            else:
                loop = partial(rows_by_index, dy, x, rows, stored_columns, sums)
            _run_in_threads(loop, len(stored_columns))
            parts.append(torch.from_numpy(sums))
        return index.join(parts, dtype)


def _run_in_threads(work: Callable[[int, int], None], length: int) -> None:
    """Call ``work(low, high)`` over 0..length in one part per thread of torch; compiled code releases the GIL."""
    threads = min(torch.get_num_threads(), max(length // MIN_ENTRIES_PER_THREAD, 1))
    if threads == 1:
        work(0, length)
        return
    edges = [length * part // threads for part in range(threads + 1)]
    list(_pool(threads, os.getpid()).map(work, edges[:-1], edges[1:]))


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return one pool per size and process: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="taskedge-kernel")


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None


@cache
def _compiled() -> tuple[Any, Any]:
    """Return the two compiled loops: rows in order, and rows by index. Compiled once, then read from numba's cache."""
    import numba

    options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        compile_ = numba.njit(**options, cache=True)
        return compile_(_rows_in_order), compile_(_rows_by_index)
    except RuntimeError:  # no folder to keep the compiled code in: compile in every process
        compile_ = numba.njit(**options)
        return compile_(_rows_in_order), compile_(_rows_by_index)


# Both loop over slices, from 0: for an index that counts from ``low`` numba must check each time whether it is
# negative, which costs a third of the loop.


def _rows_in_order(dy: Any, x: Any, rows: Any, columns: Any, sums: Any, low: int, high: int) -> None:
    columns, sums = columns[low:high], sums[low:high]
    tokens = dy.shape[0]
    tokens_by_four = tokens - tokens % 4
    for t in range(0, tokens_by_four, 4):
        dy0, dy1, dy2, dy3 = dy[t, low:high], dy[t + 1, low:high], dy[t + 2, low:high], dy[t + 3, low:high]
        for i in range(len(columns)):
            c = columns[i]
            pair = dy0[i] * x[t, c] + dy1[i] * x[t + 1, c]
            sums[i] += pair + dy2[i] * x[t + 2, c] + dy3[i] * x[t + 3, c]
    for t in range(tokens_by_four, tokens):
        for i in range(len(columns)):
            sums[i] += dy[t, low + i] * x[t, columns[i]]


def _rows_by_index(dy: Any, x: Any, rows: Any, columns: Any, sums: Any, low: int, high: int) -> None:
    rows, columns, sums = rows[low:high], columns[low:high], sums[low:high]
    tokens = dy.shape[0]
    tokens_by_four = tokens - tokens % 4
    for t in range(0, tokens_by_four, 4):
        for i in range(len(columns)):
            r, c = rows[i], columns[i]
            pair = dy[t, r] * x[t, c] + dy[t + 1, r] * x[t + 1, c]
            sums[i] += pair + dy[t + 2, r] * x[t + 2, c] + dy[t + 3, r] * x[t + 3, c]
    for t in range(tokens_by_four, tokens):
        for i in range(len(columns)):
            sums[i] += dy[t, rows[i]] * x[t, columns[i]]


KERNELS.add("numba", Numba())
