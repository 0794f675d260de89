"""Tables and summaries for a terminal. The input is plain values: the JSON form of plans, profiles and simulations."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from taskedge.profiling.byte_size import format_bytes


def columns(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Return rows as aligned columns, two spaces apart.

    Args:
        rows: cells; every row has the same number of them.
        left: indices of the columns that are aligned to the left. All others are aligned to the right.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def count_text(count: int, singular: str, plural: str = "") -> str:
    """Return a count with its noun: ``1 entry``, ``1,200 entries``. The default plural has an s."""
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def percent_text(share: float, decimals: int = 3) -> str:
    """Return a share as ``0.123%``, or with two digits where the decimals would all be 0."""
    if 0 < share < 0.5 * 10 ** -(decimals + 2):
        decimals = -1 - math.floor(math.log10(share))
    return f"{share:.{decimals}%}"


def ranges(numbers: Sequence[int], separator: str = ", ") -> str:
    """Return rising numbers with runs abbreviated: ``1-3, 7`` for [1, 2, 3, 7]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return separator.join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan_text(plan: dict[str, Any]) -> str:
    """Return a plan (``Plan.model_dump()``) as a table of devices, a summary, and the latencies of other solvers."""
    rows = [["device", "block", "layers", "bandwidth", "down", "compute", "up", "memory", "of"]]
    for part in plan["parts"]:
        rows.append(
            [
                part["device"],
                ranges(part["blocks"]),
                str(part["reaches_layer"]),
                f"{part['bandwidth_hz'] / 1e3:,.1f} kHz" if part["bandwidth_hz"] else "-",
                *(f"{part[f'{phase}_seconds']:.3f} s" for phase in ("down", "compute", "up")),
                format_bytes(part["memory_bytes"]),
                format_bytes(part["capacity_bytes"]),
            ]
        )
    values = sum(block["trained_values"] for block in plan["blocks"])
    lines = [
        f"{plan['model']}: {len(plan['blocks'])} blocks, {values:,.0f} trained values, solver {plan['solver']}",
        "",
        columns(rows),
        "",
    ]
    if plan["idle"]:
        lines.append(f"idle: {', '.join(plan['idle'])}")
    lines.append(
        f"round {plan['latency_seconds']:.3f} s, lower bound {plan['lower_bound_seconds']:.3f} s, "
        f"gap {100 * plan['gap_ratio']:.2f} %"
    )
    lines += [f"note: {note}" for note in plan["notes"]]
    if plan["compared_seconds"]:
        lines += ["", compared_text(plan["compared_seconds"], plan["latency_seconds"])]
    return "\n".join(lines)


def compared_text(compared: dict[str, float | None], latency: float) -> str:
    """Return a table of the latencies of other solvers and the difference of the plan's, fastest first."""
    rows = [["compared with", "round", "the plan takes"]]
    for name, seconds in sorted(compared.items(), key=lambda item: (item[1] is None, item[1])):
        if seconds is None:
            rows.append([name, "no plan", ""])
        else:
            share = 100 * (1 - latency / seconds) if seconds else 0.0
            rows.append([name, f"{seconds:.3f} s", f"{abs(share):.1f} % {'less' if share >= 0 else 'more'}"])
    return columns(rows)


def profile_text(profile: dict[str, Any]) -> str:
    """Return a profile (``Profile.model_dump()``) as text: cost by depth, and the speed of the machine."""
    measured = {row["depth"] for row in profile["measured"]}
    rows = [["depth", "step", "peak memory", ""]]
    for depth, (seconds, peak) in enumerate(zip(profile["step_seconds"], profile["peak_bytes"], strict=True), start=1):
        source = "measured, fitted" if depth in measured else "predicted"
        rows.append([str(depth), f"{seconds:.3f} s", format_bytes(peak), source])
    giga = {key: profile[f"{key}_flops_per_second"] / 1e9 for key in ("gemm_peak", "forward", "backward")}
    energy = profile["energy"]
    lines = [
        f"{profile['model']} on {profile['machine']['name']} ({profile['machine']['accelerator']}, "
        f"{profile['machine']['threads']} threads), batch {profile['batch_sequences']} x {profile['sequence_tokens']} "
        f"tokens, training {profile['trained']}",
        "",
        columns(rows, left=()),
        "",
        f"GEMM peak {giga['gemm_peak']:,.1f} GFLOP/s; forward {giga['forward']:,.1f} "
        f"(MFU {100 * profile['forward_mfu_ratio']:.0f} %), backward {giga['backward']:,.1f} "
        f"(MFU {100 * profile['backward_mfu_ratio']:.0f} %)",
        f"{profile['tokens_per_second']:,.0f} tokens/s at the deepest",
    ]
    if energy["source"] == "none":
        lines.append("energy: this machine has no readable power counter; give its power with --watts")
    else:
        lines.append(
            f"energy: {energy['joules_per_step']:.2f} J per step, {energy['tokens_per_joule']:.1f} tokens/J at "
            f"{energy['watts']:.1f} W (source: {energy['source']})"
        )
    return "\n".join(lines)


def device_text(report: dict[str, Any]) -> str:
    """Return a device report (``DeviceReport.model_dump()``): speed and utilization, energy, and rounds over a link."""
    machine, link, models = report["machine"], report["link"], report["models"]
    speed = [["model", "kind", "weights", "tokens/s forward", "training", "MFU forward", "training", "peak memory"]]
    rounds = [["a round", "sent", "computing", "sending", "granularity", "all parameters", "sending", "granularity"]]
    for model in models:
        speed.append(
            [
                f"{model['model']}, {model['parameters'] / 1e6:.1f} M",
                model["kind"],
                model["weights"],
                *(f"{model[f'{mode}_tokens_per_second']:,.0f}" for mode in ("forward", "training")),
                *(f"{100 * model[f'{mode}_mfu_ratio']:.0f} %" for mode in ("forward", "training")),
                format_bytes(model["peak_bytes"]),
            ]
        )
        sparse = _round_cells(model["sparse_round"], link)
        full = _round_cells(model["full_round"], link)
        full.pop(1)  # both rounds compute for the same time
        rounds.append([model["model"], *sparse, *full])
    gemm = max(model["gemm_peak_flops_per_second"] for model in models)
    batch = models[0]["batch_sequences"]
    lines = [
        f"{machine['name']} ({machine['accelerator']}, {machine['threads']} threads, torch {machine['torch']}), "
        f"{report['clock']} clock: GEMM peak {gemm / 1e9:,.1f} GFLOP/s",
        f"batches of {batch} sequences, training {models[0]['trained']}",
        "",
        columns(speed, left=(0, 1, 2)),
        "",
        *(_energy(model) for model in models),
        "",
        columns(rounds),
        f"a round: {link['local_steps']} steps, {link['bytes_per_value']:g} bytes a value, "
        f"{link['uplink_bits_per_second'] / 1e6:g} Mbit/s up, {link['downlink_bits_per_second'] / 1e6:g} down; "
        "granularity: seconds of computing for one of sending",
    ]
    return "\n".join(lines)


def _round_cells(figures: dict[str, float], link: dict[str, float]) -> list[str]:
    """Return the megabytes that a round sends, its seconds of computing and of sending, and their ratio."""
    return [
        f"{figures['values'] * link['bytes_per_value'] / 1e6:,.2f} MB",
        f"{figures['compute_seconds']:,.1f} s",
        f"{figures['communication_seconds']:,.3f} s",
        f"{figures['granularity_ratio']:,.3g}",
    ]


def _energy(model: dict[str, Any]) -> str:
    energy = model["energy"]
    if energy["tokens_per_joule"] is None:
        return f"{model['model']}: energy not available: no readable power counter; give the power with --watts"
    return (
        f"{model['model']}: {energy['tokens_per_joule']:.1f} tokens/J training, {energy['joules_per_step']:.2f} J "
        f"a step at {energy['watts']:.1f} W (source: {energy['source']})"
    )


def simulation_text(simulation: dict[str, Any]) -> str:
    """Return a summary of a simulation (``Simulation.model_dump()``), one row for each solver."""
    rows = [["solver", "mean", "median", "95th", "worst", "no plan", "saved by the first"]]
    for name, row in simulation["summary"].items():
        if row["mean_seconds"] is None:
            rows.append([name, *["-"] * 4, str(row["rounds_without_plan"]), ""])
            continue
        figures = [f"{row[f'{key}_seconds']:.3f} s" for key in ("mean", "median", "p95", "worst")]
        saved = row["saved_ratio"]
        rows.append([name, *figures, str(row["rounds_without_plan"]), "" if saved is None else f"{100 * saved:.1f} %"])
    present = simulation["devices_present"]
    return "\n".join(
        [
            f"{simulation['model']}: {simulation['rounds']} rounds, fading {simulation['fading']}, "
            f"churn {simulation['churn']:g}, seed {simulation['seed']}, "
            f"{min(present)} to {max(present)} of {simulation['devices']} devices present",
            "",
            columns(rows),
        ]
    )
