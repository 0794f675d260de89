"""Fit of a few measured depths, to predict all depths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def rising_line(work: Floats, depths: Sequence[int], measured: Sequence[float]) -> Floats:
    """Predict a cost at every depth as ``a + c·work(depth)`` with ``a, c >= 0``.

    Args:
        work: [layers] cumulative work down to each depth (FLOPs, or bytes kept), rising.
        depths: the measured depths, from 1.
        measured: the measured costs, positive.

    Returns:
        [layers] the line of least *relative* squares through the measured points. It never falls, since deeper
        backpropagation includes all work of shallower backpropagation. One point gives a constant.
    """
    x = np.asarray(work, dtype=np.float64)[np.asarray(depths) - 1]
    y = np.asarray(measured, dtype=np.float64)
    scale = x.max() or 1.0
    design = np.stack([np.ones_like(x), x / scale], axis=1) / y[:, None]  # relative: every row's target is 1
    constant, slope = np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0]
    if slope < 0 or len(set(depths)) == 1:
        constant, slope = 1 / np.mean(1 / y), 0.0
    elif constant < 0:
        constant, slope = 0.0, float(design[:, 1].sum() / (design[:, 1] ** 2).sum())
    return np.asarray(constant + slope * np.asarray(work) / scale, dtype=np.float64)
