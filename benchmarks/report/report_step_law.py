"""How far the default learning rate is from the best one, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

from benchmarks.accuracy.step_law import DEFAULT_LR, DEVELOPMENT, SETTINGS, WITH_SHARE, Curves, at
from benchmarks.report.report_accuracy import table

BAR = 0.005


def by_setting(found: Curves) -> str:
    """A row a setting: accuracies at a third of the default rate, at it and at three times it, and the distance.

    Accuracies between two measured rates are interpolated over their logarithm. The distance is that of the mean over
    the tasks from the best of these means, at any rate.
    """
    rows = []
    for setting in SETTINGS:
        curves = [found.get(setting, {}).get(task, {}) for task in DEVELOPMENT]
        if min(map(len, curves)) < 3:  # the best rate is not known yet
            continue
        tried = {DEFAULT_LR, *set.intersection(*(set(curve) for curve in curves))}
        means = {rate: mean(at(curve, rate) for curve in curves) for rate in tried}
        behind = max(means.values()) - means[DEFAULT_LR]
        cells = [
            " / ".join(_cell(curve, rate) for curve in curves) for rate in (DEFAULT_LR / 3, DEFAULT_LR, 3 * DEFAULT_LR)
        ]
        missed = ", **missed**" if behind > BAR else ""
        rows.append([setting.removesuffix(WITH_SHARE).replace("%", " %"), *cells, f"{100 * behind:.1f}{missed}"])
    rates = [f"at {rate:.2g}" for rate in (DEFAULT_LR / 3, DEFAULT_LR, 3 * DEFAULT_LR)]
    return table(["TREC / tweets, validation accuracy", *rates, "behind the best"], rows)


def _cell(curve: Mapping[float, float], rate: float) -> str:
    """The accuracy at a rate; a dash where none was measured that far out, nor 10 % nearer."""
    near = min(curve) / 1.1 <= rate <= max(curve) * 1.1
    return f"{100 * at(curve, rate):.1f}" if near else "-"
