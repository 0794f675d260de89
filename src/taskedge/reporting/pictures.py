"""Pictures of a plan and of a simulation. The input is plain values; matplotlib is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from taskedge.errors import TaskEdgeError
from taskedge.io.atomic import atomic_file
from taskedge.reporting.tables import ranges

PHASES = {"down": "#9ecae1", "compute": "#3182bd", "up": "#fd8d3c"}
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#ff7f0e")
STYLES = ("-", "--", "-.", ":")


def draw_plan(plan: dict[str, Any], path: Path) -> None:
    """Draw a round as bars: the phases of each device, the end of the round, and its lower bound.

    Args:
        plan: ``Plan.model_dump()``.
        path: file to write; its suffix is the format.

    Raises:
        TaskEdgeError: matplotlib is missing, or cannot write that format.
    """
    plt = _pyplot()
    parts = plan["parts"]
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.34 * len(parts)), layout="constrained")
    names = [f"{part['device']}  (block{'s' * (len(part['blocks']) > 1)} {ranges(part['blocks'])})" for part in parts]
    start = np.zeros(len(parts))
    for phase, color in PHASES.items():
        seconds = np.array([part[f"{phase}_seconds"] for part in parts])
        axes.barh(names, seconds, left=start, color=color, label=phase, height=0.7)
        start += seconds
    end = plan["latency_seconds"] - plan["aggregation_seconds"]
    bound = plan["lower_bound_seconds"] - plan["aggregation_seconds"]
    axes.axvline(end, color="black", linewidth=1.2, label=f"end of the uploads, {end:.2f} s")
    axes.axvline(bound, color="black", linewidth=1.2, linestyle=":", label=f"lower bound, {bound:.2f} s")
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title(f"{plan['model']}: one round, solver {plan['solver']}", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(plt, figure, path)


def draw_simulation(simulation: dict[str, Any], path: Path) -> None:
    """Draw latency over rounds and its cumulative distribution, one line per solver.

    Args:
        simulation: ``Simulation.model_dump()``.
        path: file to write; its suffix is the format.

    Raises:
        TaskEdgeError: matplotlib is missing, or cannot write that format.
    """
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(3, 2))
    for index, (name, series) in enumerate(simulation["latency_seconds"].items()):
        latencies = np.array([np.nan if seconds is None else seconds for seconds in series])
        if np.isnan(latencies).all():
            continue
        style: dict[str, Any] = {
            "color": COLORS[index % len(COLORS)],
            "linestyle": STYLES[index // len(COLORS) % len(STYLES)],
        }
        style |= {"linewidth": 4.0, "alpha": 0.5, "zorder": 1} if index == 0 else {"linewidth": 1.1, "zorder": 2}
        left.plot(
            np.arange(1, len(latencies) + 1), latencies, **style, label=f"{name} (mean {np.nanmean(latencies):.2f} s)"
        )
        ordered = np.sort(latencies[~np.isnan(latencies)])
        share = np.arange(1, len(ordered) + 1) / len(latencies)  # rounds without a plan count as endless
        right.step(ordered, share, where="post", **style)
    for axes, name in ((left, "seconds per round"), (right, "share of rounds done within")):
        axes.set_ylabel(name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    left.set_xlabel("round")
    right.set_xlabel("seconds per round")
    right.set_ylim(0, 1.02)
    values = [s for series in simulation["latency_seconds"].values() for s in series if s is not None]
    if values and max(values) > 8 * min(values):
        left.set_yscale("log")
        right.set_xscale("log")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
    title = f"{simulation['model']}, {simulation['devices']} devices, {simulation['fading']} fading"
    left.set_title(title, loc="left", fontsize=11)
    _save(plt, figure, path)


def check_picture(path: Path | None) -> None:
    """Check that a picture can be drawn in the format of a file name, before any work; None is no picture.

    Raises:
        TaskEdgeError: matplotlib is missing, or cannot write that format.
    """
    if path is None:
        return
    _pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if (path.suffix.lstrip(".").lower() or "svg") not in known:
        raise TaskEdgeError(f"cannot draw {path}: give a name that ends in .svg, .png or .pdf")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise TaskEdgeError("pictures need matplotlib: pip install 'taskedge[plot]'") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "taskedge"  # the same figures give the same file
    import matplotlib.pyplot

    return matplotlib.pyplot


def _save(plt: Any, figure: Any, path: Path) -> None:
    try:
        with atomic_file(path) as tmp:
            figure.savefig(tmp, format=path.suffix.lstrip(".") or "svg", metadata=_metadata(path))
    except ValueError as error:
        raise TaskEdgeError(f"cannot draw {path}: {error}; give a name that ends in .svg, .png or .pdf") from None
    finally:
        plt.close(figure)


def _metadata(path: Path) -> dict[str, None] | None:
    return {"Date": None} if path.suffix == ".svg" else None
