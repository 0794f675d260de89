"""Regional coordinators on paper and by simulation: up to 100,000 devices, the length of a round and bytes up the tree.

    OMP_NUM_THREADS=1 python -m benchmarks.planning.hierarchy    # three minutes

A coordinator of a region sends the values to its devices, checks and sums their answers, and passes the sum of weighted
gradients and the sum of weights on. ``AnswerSum.merge`` adds such sums. What is measured here: how far the sum of
regional sums is from the flat sum for 100,000 answers, and what a regional sum costs to read and to merge.

What is simulated: one round of ``fedavg`` without stragglers beyond the drawn range. A coordinator is three queues in
tandem, first come first served: its outgoing link, its incoming link, and one core that reads and sums what arrived.
Sending takes its share of that core and comes first. The core's time per device is the measured one of
``thousand_devices.jsonl``, half of it for sending. Devices draw their training from 0.2 to 5 s and their link from 1 to
20 Mbit/s, log-uniform; coordinators have 1 Gbit/s and 50 ms to one another. Regions have at most 1,000 devices.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.record import machine, results, write
from taskedge.cooperation.coordinator.aggregation import SERVER_OPTIMIZERS
from taskedge.cooperation.coordinator.answer_sum import AnswerSum
from taskedge.cooperation.protocol.message import Message

RESULTS = ("hierarchy.json",)
FLEETS = (100, 1_000, 10_000, 100_000)
REGION = 1_000
"""Most devices of a coordinator: what was measured on one core."""
SEED = 5
TRAINING_SECONDS, DEVICE_BITS = (0.2, 5.0), (1e6, 20e6)
COORDINATOR_BITS, HOP_SECONDS, DEVICE_HOP_SECONDS = 1e9, 0.05, 0.03
EXACT_ANSWERS, EXACT_REGIONS, CANNED = 100_000, 100, 64

Line = dict[str, Any]


@dataclass(frozen=True)
class Costs:
    """What was measured."""

    task_bytes: float
    answer_bytes: float
    sum_bytes: float
    answer_seconds: float
    """Processor time of a coordinator for one device in a round: sending, reading, checking, summing."""
    sum_seconds: float
    """Processor time to read and merge one regional sum."""
    coordinator_mb: tuple[float, float]
    """Resident memory of a coordinator: fixed, and per device."""
    connection_ms: float
    """Processor time of the server for one connection with TLS."""


def log_uniform(draw: np.random.Generator, limits: tuple[float, float], count: int) -> np.ndarray:
    low, high = limits
    return low * (high / low) ** draw.random(count)


def served(arrivals: np.ndarray, seconds: float) -> np.ndarray:
    """When each job is done that arrived at these moments and takes as long as any other; first come, first served."""
    order = np.argsort(arrivals, kind="stable")
    steps = np.arange(len(arrivals))
    done = np.empty_like(arrivals)
    done[order] = np.maximum.accumulate(arrivals[order] - seconds * steps) + seconds * (steps + 1)
    return done


def gather(sent: np.ndarray, away: np.ndarray, num_bytes: float, seconds: float, begin: float) -> tuple[float, float]:
    """When a coordinator has read all answers, and how long its core worked.

    Args:
        sent: When each child's message may leave.
        away: Seconds from its leaving to the moment that the child's answer begins to arrive.
        num_bytes: Of an answer.
        seconds: Of the core for one child, sending and reading.
        begin: When the coordinator began to send.
    """
    arrived = served(sent + away, 8 * num_bytes / COORDINATOR_BITS)
    core_is_free = begin + len(sent) * seconds / 2
    done = served(np.maximum(arrived, core_is_free), seconds / 2)
    return float(done.max()), len(sent) * seconds


def leave(begin: float, count: int, num_bytes: float, seconds: float) -> np.ndarray:
    """When the messages to so many children have left: the slower of the core and the link sets the pace."""
    return begin + (1 + np.arange(count)) * max(seconds / 2, 8 * num_bytes / COORDINATOR_BITS)


def simulate(costs: Costs, devices: int, tiers: tuple[int, ...], draw: np.random.Generator) -> Line:
    """One round.

    Args:
        costs: See :class:`Costs`.
        devices: How many.
        tiers: Coordinators below the root, tier by tier; empty: the root has all devices.
        draw: Of devices.
    """
    training = log_uniform(draw, TRAINING_SECONDS, devices)
    rates = log_uniform(draw, DEVICE_BITS, devices)
    away = 2 * DEVICE_HOP_SECONDS + training + 8 * (costs.task_bytes + costs.answer_bytes) / rates
    busiest: list[float] = []

    def node(begin: float, tier: int, share: np.ndarray) -> float:
        """When the coordinator of these devices has its sum."""
        if tier == len(tiers):
            sent = leave(begin, len(share), costs.task_bytes, costs.answer_seconds)
            end, busy = gather(sent, away[share], costs.answer_bytes, costs.answer_seconds, begin)
        else:
            above = math.prod(tiers[:tier]) or 1
            children = np.array_split(share, tiers[tier] // above if tier else tiers[0])
            sent = leave(begin, len(children), costs.task_bytes, costs.sum_seconds)
            ends = np.array([node(at + HOP_SECONDS, tier + 1, child) for at, child in zip(sent, children, strict=True)])
            end, busy = gather(sent, ends + HOP_SECONDS - sent, costs.sum_bytes, costs.sum_seconds, begin)
        while len(busiest) <= tier:
            busiest.append(0.0)
        busiest[tier] = max(busiest[tier], busy)
        return end

    seconds = node(0.0, 0, np.arange(devices))
    children = tiers[0] if tiers else devices
    per_child = costs.sum_bytes if tiers else costs.answer_bytes
    largest = math.ceil(devices / (tiers[-1] if tiers else 1))
    return {
        "devices": devices,
        "regional coordinators": list(tiers),
        "round_s": seconds,
        "devices_alone_s": float(away.max()),
        "root_in_mb": children * per_child / 1e6,
        "root_out_mb": children * costs.task_bytes / 1e6,
        "all_links_mb": (
            devices * (costs.task_bytes + costs.answer_bytes) + sum(tiers) * (costs.task_bytes + costs.sum_bytes)
        )
        / 1e6,
        "root_core_s": busiest[0],
        "region_core_s": busiest[-1],
        "largest_coordinator_mb": costs.coordinator_mb[0] + costs.coordinator_mb[1] * largest,
        "reconnect_core_s": costs.connection_ms * largest / 1000,
    }


def measure_sums(values: int) -> tuple[Line, float, float]:
    """The sum of regional sums beside the flat sum; seconds of a merge with its reading; bytes of a regional sum."""
    draw = torch.Generator().manual_seed(SEED)
    pick = np.random.default_rng(SEED)
    canned = [{"values": 1e-3 * torch.randn(values, generator=draw)} for _ in range(CANNED)]
    weights = pick.integers(200, 3_000, EXACT_ANSWERS)
    flat, regions = AnswerSum(), [AnswerSum() for _ in range(EXACT_REGIONS)]
    begun = time.process_time()
    for number, weight in enumerate(weights):
        flat.add(float(weight), canned[number % CANNED])
    adding = time.process_time() - begun
    for number, weight in enumerate(weights):
        regions[number % EXACT_REGIONS].add(float(weight), canned[number % CANNED])
    whole, busy, num_bytes = AnswerSum(), 0.0, 0
    for region in regions:
        total = sum(region._weights.values())
        packed = Message("sum", {"weights": region._weights}, {n: t * total for n, t in region.mean().items()}).pack()
        num_bytes = len(packed)
        begun = time.process_time()
        Message.unpack(packed)
        whole.merge(region)
        busy += time.process_time() - begun
    one, other = flat.mean()["values"], whole.mean()["values"]
    start = {"values": torch.zeros(values)}
    stepped = [
        SERVER_OPTIMIZERS["fedadamw"]().step(start, {"values": mean}, lambda _: 1e-3)["values"] for mean in (one, other)
    ]
    found = {
        "answers": EXACT_ANSWERS,
        "regions": EXACT_REGIONS,
        "values": values,
        "largest difference / largest entry": float((one - other).abs().max() / one.abs().max()),
        "float32 values after a step are equal": bool(torch.equal(*stepped)),
        "values that differ after a step": int((stepped[0] != stepped[1]).sum()),
        "seconds to add one answer": adding / EXACT_ANSWERS,
    }
    return found, busy / EXACT_REGIONS, float(num_bytes)


def measured_coordinators() -> tuple[float, tuple[float, float], float]:
    """Seconds of a core for a device, memory, and the server's milliseconds for a connection, as they are on file."""
    lines = map(json.loads, (results("cooperation") / "thousand_devices.jsonl").read_text().splitlines())
    found = {(line["links"], line["devices"]): line for line in lines if line["revision"] != "before"}

    def of(key: tuple[str, int], what: str) -> float:
        return float(next(f["median"] for f in found[key]["figures"] if f["what"].startswith(what)))

    large, small = ("memory", 1_000), ("memory", 100)
    peaks = [of(key, "largest resident memory") for key in (small, large)]
    per_device = (peaks[1] - peaks[0]) / 900
    of_server = max(count for links, count in found if links == "nats")
    connection = of(("nats", of_server), "server, processor time of a connection")
    return (
        of(large, "coordinator, processor time of a round") / 1000 / 1_000,
        (peaks[0] - 100 * per_device, per_device),
        connection,
    )


def main() -> None:
    torch.set_num_threads(1)
    sizes = json.loads((results("cooperation") / "cooperation_bytes.json").read_text())["figures"]
    of_bytes = {line["what"]: 1000 * line["median"] for line in sizes}
    name = "fedavg, float8, 4 devices, at most 6 blocks on one"
    values = round(of_bytes[f"down: {name}"] / 4)
    sums, merge_seconds, sum_bytes = measure_sums(values)
    answer_seconds, memory, connection_ms = measured_coordinators()
    costs = Costs(
        of_bytes[f"down: {name}"],
        of_bytes[f"up: {name}"],
        sum_bytes,
        answer_seconds,
        merge_seconds,
        memory,
        connection_ms,
    )
    lines = []
    for devices in FLEETS:
        regions = devices // REGION
        for tiers in dict.fromkeys(
            [(), *([(regions,)] if regions > 1 else []), *([(10, regions)] if regions > 10 else [])]
        ):
            lines.append(simulate(costs, devices, tiers, np.random.default_rng(SEED)))
            print(json.dumps(lines[-1]))
    print(sums)
    setting = f"fedavg, {values:,} values, float8 answers; regions of at most {REGION:,} devices; one core each"
    record = {"setting": setting, "measured": costs.__dict__, "sums": sums, "rounds": lines}
    write("planning", "hierarchy", record, machine())


if __name__ == "__main__":
    main()
