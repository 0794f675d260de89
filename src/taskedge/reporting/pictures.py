"""SVG pictures of a plan and of a simulation. They read plain figures only, and need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskedge.errors import TaskEdgeError

PHASES = {"down": "#9ecae1", "compute": "#3182bd", "up": "#fd8d3c"}
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#ff7f0e")
STYLES = ("-", "--", "-.", ":")


def draw_plan(plan: dict[str, Any], path: Path) -> None:
    """A round as bars: what each device does when, the round's end, and its lower bound."""
    plt = _pyplot()
    parts = plan["parts"]
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.34 * len(parts)), layout="constrained")
    names = [f"{part['device']}  (block {_blocks(part['blocks'])})" for part in parts]
    start = np.zeros(len(parts))
    for phase, colour in PHASES.items():
        seconds = np.array([part[f"{phase}_seconds"] for part in parts])
        axes.barh(names, seconds, left=start, color=colour, label=phase, height=0.7)
        start += seconds
    end = plan["latency_seconds"] - plan["aggregation_seconds"]
    bound = plan["lower_bound_seconds"] - plan["aggregation_seconds"]
    axes.axvline(end, color="black", linewidth=1.2, label=f"end of the uploads, {end:.2f} s")
    axes.axvline(bound, color="black", linewidth=1.2, linestyle=":", label=f"lower bound, {bound:.2f} s")
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title(f"{plan['model']}: one round, solver {plan['solver']}", loc="left", fontsize=11)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2 - 0.5 / len(parts)), ncols=5, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(plt, figure, path)


def draw_simulation(simulation: dict[str, Any], path: Path) -> None:
    """Latency over rounds, and its cumulative distribution, one line per solver."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(3, 2))
    for place, (name, series) in enumerate(simulation["latency_seconds"].items()):
        known = np.array([np.nan if seconds is None else seconds for seconds in series])
        if np.isnan(known).all():
            continue
        look: dict[str, Any] = {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": STYLES[place // len(COLOURS) % len(STYLES)],
        }
        look |= {"linewidth": 4.0, "alpha": 0.5, "zorder": 1} if place == 0 else {"linewidth": 1.1, "zorder": 2}
        left.plot(np.arange(1, len(known) + 1), known, **look, label=f"{name} (mean {np.nanmean(known):.2f} s)")
        ordered = np.sort(known[~np.isnan(known)])
        share = np.arange(1, len(ordered) + 1) / len(known)  # rounds without a plan count as never done
        right.step(ordered, share, where="post", **look)
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


def _blocks(depths: Sequence[int]) -> str:
    return str(depths[0]) if len(depths) == 1 else f"{depths[0]}..{depths[-1]}"


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
    aside = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(aside, format=path.suffix.lstrip(".") or "svg", metadata=_metadata(path))
        aside.replace(path)
    except ValueError as error:
        raise TaskEdgeError(f"cannot draw {path}: {error}; give a name that ends in .svg, .png or .pdf") from None
    finally:
        plt.close(figure)
        aside.unlink(missing_ok=True)


def _metadata(path: Path) -> dict[str, None] | None:
    return {"Date": None} if path.suffix == ".svg" else None
