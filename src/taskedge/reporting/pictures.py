"""Pictures of a plan, a simulation and a placement. The input is plain values; matplotlib is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from taskedge.errors import TaskEdgeError
from taskedge.io.atomic import atomic_file
from taskedge.reporting.tables import count_text, ranges

PHASES = {"down": "#9ecae1", "compute": "#3182bd", "up": "#fd8d3c"}
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#ff7f0e")
STYLES = ("-", "--", "-.", ":")
CONTENT = {"base": "#3182bd", "task": "#fd8d3c", "activations": "#74c476", "buffer": "#9e9ac8"}
ENERGY_COLORS = ("#bdbdbd", "#3182bd", "#fd8d3c", "#74c476")


def draw_plan(plan: dict[str, Any], path: Path) -> None:
    """Draw a round as bars: the phases of each device, the end of the round, and its lower bound.

    Args:
        plan: ``Plan.model_dump()``.
        path: file to write; its suffix is the format.

    Raises:
        TaskEdgeError: matplotlib is missing, or cannot write that format.
    """
    plt = open_pyplot()
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
    save_picture(plt, figure, path)


def draw_simulation(simulation: dict[str, Any], path: Path) -> None:
    """Draw latency over rounds and its cumulative distribution, one line per solver.

    Args:
        simulation: ``Simulation.model_dump()``.
        path: file to write; its suffix is the format.

    Raises:
        TaskEdgeError: matplotlib is missing, or cannot write that format.
    """
    plt = open_pyplot()
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
    save_picture(plt, figure, path)


def draw_placement(plan: dict[str, Any], path: Path) -> None:
    """Draw the bytes in each memory, energy beside chips with one memory, and accuracy over faults if it was measured.

    Args:
        plan: of :func:`taskedge.placement.placement_plan.make_plan`; ``faults`` in it has the measurements.
        path: file to write; its suffix is the format.

    Raises:
        TaskEdgeError: matplotlib is missing, or cannot write that format.
    """
    plt = open_pyplot()
    faults = plan.get("faults")
    panels = 3 if faults else 2
    height = 1.8 + 0.42 * max(len(plan["compared"]) + 1, len(plan["memories"]) * 2)
    figure, axes = plt.subplots(1, panels, figsize=(5.2 * panels, height), layout="constrained")
    _draw_bytes(axes[0], plan)
    _draw_energy(axes[1], plan)
    if faults:
        _draw_faults(axes[2], faults)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{plan['model']}, {count_text(len(plan['tasks']), 'task')}: a model over published cells", fontsize=11
    )
    save_picture(plt, figure, path)


def _draw_bytes(axes: Any, plan: dict[str, Any]) -> None:
    labels, sizes, colors = [], [], []
    for memory in plan["memories"]:
        bytes_of: dict[str, int] = {}
        for row in plan["tensors"]:
            if row["memory"] == memory["name"]:
                bytes_of[row["kind"]] = bytes_of.get(row["kind"], 0) + row["bytes"]
        if plan["buffer"] is not None and plan["buffer"]["memory"] == memory["name"]:
            bytes_of["buffer"] = plan["buffer"]["bytes"]
        for kind, size in bytes_of.items():
            labels.append(f"{memory['name']}: {kind}")
            sizes.append(size)
            colors.append(CONTENT[kind])
    bars = axes.barh(range(len(labels)), sizes, color=colors, height=0.7)
    axes.bar_label(bars, [f"{size:,}" for size in sizes], padding=3, fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 4, max(sizes) * 30)
    axes.invert_yaxis()
    axes.set_xlabel("bytes (logarithmic)")
    axes.set_title("what lives where", loc="left", fontsize=10)


def _draw_energy(axes: Any, plan: dict[str, Any]) -> None:
    use = plan["use"]
    rows = [("this placement", plan["totals"], True)]
    rows += [(f"all in {other['memory']}", other, other["possible"]) for other in plan["compared"]]
    names = [name if possible else f"{name}\n(impossible)" for name, _, possible in rows]
    left = np.zeros(len(rows))
    parts = {
        "leakage": [3600 * totals["leakage_watts"] for _, totals, _ in rows],
        "passes": [use["passes_per_hour"] * totals["pass_joules"] for _, totals, _ in rows],
        "switches": [use["switches_per_hour"] * totals["switch_joules"] for _, totals, _ in rows],
        "updates": [use["task_updates_per_day"] / 24 * totals["update_joules"] for _, totals, _ in rows],
    }
    for color, (part, values) in zip(ENERGY_COLORS, parts.items(), strict=True):
        if max(values):
            axes.barh(range(len(rows)), values, left=left, color=color, height=0.7, label=part)
            left += np.array(values)
    axes.set_yticks(range(len(rows)), names)
    axes.bar_label(
        axes.barh(range(len(rows)), left, alpha=0), [f"{value:.3g}" for value in left], padding=3, fontsize=8
    )
    axes.set_xlim(0, max(left.max(), 1e-12) * 1.2)
    axes.invert_yaxis()
    axes.set_xlabel("joules per hour")
    axes.set_title("energy of the memories", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _draw_faults(axes: Any, faults: dict[str, Any]) -> None:
    measure = faults["measure"]
    axes.axhline(
        faults["without_storage"], color="black", linewidth=1, linestyle=":", label="weights not stored in codes"
    )
    rows = faults["rows"]
    names = [row["setting"] for row in rows]
    means = [float(np.mean([values[measure] for values in row["measures"]])) for row in rows]
    axes.plot(range(len(rows)), means, "o-", color=COLORS[1], label="mean of the draws")
    for place, row in enumerate(rows):
        values = [values[measure] for values in row["measures"]]
        axes.plot([place] * len(values), values, "o", color=COLORS[1], alpha=0.35, markersize=4)
    axes.set_xticks(range(len(rows)), names, rotation=30, ha="right", fontsize=8)
    axes.set_ylabel(measure)
    axes.set_title("read faults of the base", loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)


def check_picture(path: Path | None) -> None:
    """Check that a picture can be drawn in the format of a file name, before any work; None is no picture.

    Raises:
        TaskEdgeError: matplotlib is missing, or cannot write that format.
    """
    if path is None:
        return
    open_pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if (path.suffix.lstrip(".").lower() or "svg") not in known:
        raise TaskEdgeError(f"cannot draw {path}: give a name that ends in .svg, .png or .pdf")


def open_pyplot() -> Any:
    """Return ``matplotlib.pyplot`` for writing files, or raise TaskEdgeError if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise TaskEdgeError("pictures need matplotlib: pip install 'taskedge[plot]'") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "taskedge"  # the same figures give the same file
    import matplotlib.pyplot

    return matplotlib.pyplot


def save_picture(plt: Any, figure: Any, path: Path) -> None:
    """Write a figure to a file, atomically, and close it.

    Raises:
        TaskEdgeError: matplotlib cannot write that format.
    """
    try:
        with atomic_file(path) as tmp:
            figure.savefig(tmp, format=path.suffix.lstrip(".") or "svg", metadata=_metadata(path))
    except ValueError as error:
        raise TaskEdgeError(f"cannot draw {path}: {error}; give a name that ends in .svg, .png or .pdf") from None
    finally:
        plt.close(figure)


def _metadata(path: Path) -> dict[str, None] | None:
    return {"Date": None} if path.suffix == ".svg" else None
