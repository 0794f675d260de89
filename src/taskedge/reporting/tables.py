"""Plans, profiles and simulations as text for a terminal. Reads their plain figures only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows as aligned columns: the first ``left`` to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def plan_text(plan: dict[str, Any]) -> str:
    """A plan (``Plan.model_dump()``) as a table of devices, a summary, and what the baselines would cost."""
    rows = [["device", "block", "layers", "bandwidth", "down", "compute", "up", "memory", "of"]]
    for part in plan["parts"]:
        rows.append(
            [
                part["device"],
                ranges(part["blocks"]),
                str(part["reaches_layer"]),
                f"{part['bandwidth_hz'] / 1e3:,.1f} kHz" if part["bandwidth_hz"] else "-",
                *(f"{part[f'{phase}_seconds']:.3f} s" for phase in ("down", "compute", "up")),
                f"{part['memory_bytes'] / 1e6:,.0f} MB",
                f"{part['capacity_bytes'] / 1e6:,.0f} MB",
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
    """Latencies of other solvers, and how much less the plan takes."""
    rows = [["compared with", "round", "the plan takes"]]
    for name, seconds in sorted(compared.items(), key=lambda item: (item[1] is None, item[1])):
        if seconds is None:
            rows.append([name, "no plan", ""])
        else:
            share = 100 * (1 - latency / seconds) if seconds else 0.0
            rows.append([name, f"{seconds:.3f} s", f"{abs(share):.1f} % {'less' if share >= 0 else 'more'}"])
    return columns(rows)


def ranges(numbers: Sequence[int]) -> str:
    """``1-3, 7`` for [1, 2, 3, 7]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def profile_text(profile: dict[str, Any]) -> str:
    """A profile (``Profile.model_dump()``) as text: the machine's speed, and cost by depth."""
    measured = {row["depth"] for row in profile["measured"]}
    rows = [["depth", "step", "peak memory", ""]]
    for depth, (seconds, held) in enumerate(zip(profile["step_seconds"], profile["peak_bytes"], strict=True), start=1):
        source = "measured, fitted" if depth in measured else "predicted"
        rows.append([str(depth), f"{seconds:.3f} s", f"{held / 1e6:,.0f} MB", source])
    giga = {key: profile[f"{key}_flops_per_second"] / 1e9 for key in ("gemm_peak", "forward", "backward")}
    energy = profile["energy"]
    lines = [
        f"{profile['model']} on {profile['machine']['name']} ({profile['machine']['accelerator']}, "
        f"{profile['machine']['threads']} threads), batch {profile['batch_sequences']} x {profile['sequence_tokens']} "
        f"tokens, training {profile['trained']}",
        "",
        columns(rows, left=0),
        "",
        f"GEMM peak {giga['gemm_peak']:,.1f} GFLOP/s; forward {giga['forward']:,.1f} "
        f"(MFU {100 * profile['forward_mfu_ratio']:.0f} %), backward {giga['backward']:,.1f} "
        f"(MFU {100 * profile['backward_mfu_ratio']:.0f} %)",
        f"{profile['tokens_per_second']:,.0f} tokens/s at the deepest",
    ]
    if energy["source"] == "none":
        lines.append("energy: this machine offers no counter that can be read; say its power with --watts")
    else:
        lines.append(
            f"energy: {energy['joules_per_step']:.2f} J per step, {energy['tokens_per_joule']:.1f} tokens/J at "
            f"{energy['watts']:.1f} W (source: {energy['source']})"
        )
    return "\n".join(lines)


def device_text(report: dict[str, Any]) -> str:
    """A device report (``DeviceReport.model_dump()``): speed and use, energy, and rounds over a link."""
    machine, link, models = report["machine"], report["link"], report["models"]
    speed = [["model", "kind", "weights", "tokens/s forward", "training", "MFU forward", "training", "peak memory"]]
    rounds = [["a round", "sent", "computing", "sending", "granularity", "all parameters", "sending", "granularity"]]
    for model in models:
        speed.append(
            [
                f"{model['model']}, {model['parameters'] / 1e6:.1f} M",
                model["kind"],
                model["weights"],
                *(f"{model[f'{what}_tokens_per_second']:,.0f}" for what in ("forward", "training")),
                *(f"{100 * model[f'{what}_mfu_ratio']:.0f} %" for what in ("forward", "training")),
                f"{model['peak_bytes'] / 1e6:,.0f} MB",
            ]
        )
        sparse, full = model["sparse_round"], model["full_round"]
        rounds.append([model["model"], *_sent(sparse, link, True), *_sent(full, link, False)])
    gemm = max(model["gemm_peak_flops_per_second"] for model in models)
    batch = models[0]["batch_sequences"]
    lines = [
        f"{machine['name']} ({machine['accelerator']}, {machine['threads']} threads, torch {machine['torch']}), "
        f"{report['clock']} clock: GEMM peak {gemm / 1e9:,.1f} GFLOP/s",
        f"batches of {batch} sequences, training {models[0]['trained']}",
        "",
        columns(speed, left=3),
        "",
        *(_energy(model) for model in models),
        "",
        columns(rounds),
        f"a round: {link['local_steps']} steps, {link['bytes_per_value']:g} bytes a value, "
        f"{link['uplink_bits_per_second'] / 1e6:g} Mbit/s up, {link['downlink_bits_per_second'] / 1e6:g} down; "
        "granularity: seconds of computing for one of sending",
    ]
    return "\n".join(lines)


def _sent(one: dict[str, float], link: dict[str, float], computes: bool) -> list[str]:
    """What a round sends, how long it computes (if that is to be told) and sends, and the ratio."""
    cells = [f"{one['values'] * link['bytes_per_value'] / 1e6:,.2f} MB"]
    cells += [f"{one['compute_seconds']:,.1f} s"] if computes else []
    return [*cells, f"{one['communication_seconds']:,.3f} s", f"{one['granularity_ratio']:,.3g}"]


def _energy(model: dict[str, Any]) -> str:
    energy = model["energy"]
    if energy["tokens_per_joule"] is None:
        return f"{model['model']}: energy not available: no counter that can be read; say the power with --watts"
    return (
        f"{model['model']}: {energy['tokens_per_joule']:.1f} tokens/J training, {energy['joules_per_step']:.2f} J "
        f"a step at {energy['watts']:.1f} W (source: {energy['source']})"
    )


def simulation_text(simulation: dict[str, Any]) -> str:
    """A simulation's summary (``Simulation.model_dump()``), fastest solver first."""
    rows = [["solver", "mean", "median", "95th", "worst", "no plan", "saved by the first"]]
    for name, row in simulation["summary"].items():
        if row["mean_seconds"] is None:
            rows.append([name, *["-"] * 4, str(row["rounds_without_plan"]), ""])
            continue
        figures = [f"{row[f'{key}_seconds']:.3f} s" for key in ("mean", "median", "p95", "worst")]
        saved = row["saved_ratio"]
        shown = "" if saved is None else f"{100 * saved:.1f} %"
        rows.append([name, *figures, str(row["rounds_without_plan"]), shown])
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
