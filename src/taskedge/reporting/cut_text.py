"""The plan of a cut as text: what each end does in a step, and what crosses between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskedge.reporting.tables import columns, count_text


def cut_plan_text(plans: Mapping[str, Mapping[str, Any]], links: Sequence[str] = ()) -> str:
    """Return plans of steps as a table, and what the table leaves out.

    Args:
        plans: JSON of :class:`taskedge.cooperation.cut.cut_plan.StepPlan` by what it is a plan of.
        links: a description of each column of ``seconds_by_link`` of the plans, such as ``10 Mbit/s, 20 ms``.
    """
    rows = [["a step", "from cloud", "from device", "trips", "device work", "device memory", "cloud work", *links]]
    for name, plan in plans.items():
        rows.append(
            [
                name,
                bytes_text(plan["down_bytes"]),
                bytes_text(plan["up_bytes"]),
                f"{plan['round_trips']:,}",
                flops_text(plan["device_flops"]),
                bytes_text(plan["device_bytes"]),
                flops_text(plan["cloud_flops"]) if plan["cloud_flops"] else "not known",
                *(f"{seconds:.3g} s" for seconds in plan.get("seconds_by_link", ())),
            ]
        )
    first = next(iter(plans.values()))
    return "\n".join(
        [
            columns(rows),
            "",
            f"{count_text(first['tokens'], 'token')} in a batch, with padding, coded as {first['coding']}. Bytes are "
            "those of activations and their gradients; masks and message headers come on top.",
            "Work of the device is without embedding and head; its memory is an estimate, without Python and "
            "libraries.",
        ]
    )


def flops_text(flops: float) -> str:
    """Return floating-point operations with a prefix: ``1.2 GFLOP``."""
    return _with_prefix(flops, "FLOP")


def bytes_text(size: float) -> str:
    """Return bytes with a prefix of powers of 1,000: ``1.2 MB``."""
    return _with_prefix(size, "B")


def _with_prefix(amount: float, unit: str) -> str:
    prefixes = ["", "k", "M", "G", "T"]
    while amount >= 999.5 and len(prefixes) > 1:
        amount /= 1000
        del prefixes[0]
    return f"{amount:,.0f} {prefixes[0]}{unit}" if amount >= 100 else f"{amount:.3g} {prefixes[0]}{unit}"
