"""Random instances and slow, independent answers for the planning tests."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from scipy.optimize import brentq

from taskedge.planning import BlockMemory, FixedRateLink, ShannonLink


def draw(rng: np.random.Generator, devices: int, blocks: int):
    """A feasible radio instance whose compute seconds grow with depth: arguments of a solver."""
    speed = rng.lognormal(0, 0.6, devices)
    compute = np.sort((1 + np.arange(blocks)) * rng.uniform(0.02, 0.2) / speed[:, None], axis=1)
    reach = np.where(rng.random(devices) < 0.3, rng.integers(1, blocks + 1, devices), blocks)
    reach[rng.permutation(devices)[:blocks]] = blocks
    fits = np.arange(blocks) < reach[:, None]
    bits = rng.uniform(0.2, 2, blocks) * 10 ** rng.uniform(5, 7)
    return compute, fits, bits, ShannonLink(10 ** rng.uniform(6, 9, devices)), 10 ** rng.uniform(6, 7.5)


def draw_any(rng: np.random.Generator, devices: int, blocks: int):
    """An instance of any numbers, with memory for some sets of blocks; there may be no plan."""
    compute, fits, bits, link, bandwidth = draw(rng, max(devices, blocks), blocks)
    compute, fits, link = compute[:devices], fits[:devices], ShannonLink(link.snr_hz[:devices])
    alone = np.sort(rng.uniform(1, 2, (devices, blocks)), axis=1)
    memory = BlockMemory(alone, rng.uniform(0, 1, (devices, blocks)), rng.uniform(1.5, 4, devices))
    fits = fits & (alone <= memory.capacity[:, None])
    return (compute, fits, bits, link, bandwidth), memory


def with_device(case, memory, rng: np.random.Generator, *, dead: bool = False):
    """The same with one more device, which may be fast or slow, large or small; a dead one has no radio."""
    compute, fits, bits, link, bandwidth = case
    blocks = bits.size
    seconds = np.sort(rng.uniform(0.01, 10, blocks))
    alone, extra = np.sort(rng.uniform(1, 2, blocks)), rng.uniform(0, 1, blocks)
    capacity = float(rng.choice([1e-9, 1.5, 4.0]))
    more = BlockMemory(
        np.vstack([memory.alone, alone]), np.vstack([memory.extra, extra]), np.append(memory.capacity, capacity)
    )
    snr = 0.0 if dead else 10 ** rng.uniform(4, 10)
    larger = (
        np.vstack([compute, seconds]),
        np.vstack([fits, alone <= capacity]),
        bits,
        ShannonLink(np.append(link.snr_hz, snr)),
        bandwidth,
    )
    return larger, more


def least_hertz(snr: float, rate: float) -> float:
    """Bandwidth for a Shannon rate by bracketing alone."""
    if rate == 0:
        return 0.0
    if snr == 0 or rate >= snr / np.log(2):
        return np.inf

    def excess(log_w: float) -> float:
        return np.exp(log_w) * np.log1p(snr / np.exp(log_w)) / np.log(2) - rate

    high = np.log(rate) + 1
    while excess(high) < 0:
        high += 1
        if high > 600:
            return np.inf
    return float(np.exp(brentq(excess, np.log(rate) - 600, high, xtol=1e-14, rtol=8.9e-16)))


def latency_of(parts: list[tuple[float, float, float]], bandwidth: float) -> float:
    """Least deadline for uploads of (seconds before, bits, snr) that share ``bandwidth`` Hz, by bisection."""

    def enough(deadline: float) -> bool:
        total = 0.0
        for seconds, bits, snr in parts:
            if deadline < seconds or (bits and deadline == seconds):
                return False
            total += least_hertz(snr, bits / (deadline - seconds)) if bits else 0.0
        return total <= bandwidth

    low = max(seconds for seconds, _, _ in parts)
    if enough(low):
        return low
    high = low + 1.0
    while not enough(high):
        high = low + (high - low) * 4
        if high > 1e15:
            return np.inf
    for _ in range(70):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def best_joint(compute, fits, bits, link, bandwidth) -> float:
    """The optimum over every one-to-one assignment."""
    devices, blocks = compute.shape
    best = np.inf
    for chosen in permutations(range(devices), blocks):
        if all(fits[k, b] for b, k in enumerate(chosen)):
            parts = [(compute[k, b], bits[b], link.snr_hz[k]) for b, k in enumerate(chosen)]
            best = min(best, latency_of(parts, bandwidth))
    return best


def best_several(compute, fits, bits, link, bandwidth, memory=None) -> float:
    """The optimum where a device may take any number of blocks, or none; inf where there is no plan.

    ``link`` is a radio or has fixed rates.
    """
    devices, blocks = compute.shape
    best = np.inf
    for chosen in product(range(devices), repeat=blocks):
        if not all(fits[k, b] for b, k in enumerate(chosen)):
            continue
        held = {k: [b for b in range(blocks) if chosen[b] == k] for k in set(chosen)}
        if memory is not None and any(
            memory.alone[k, mine[-1]] + sum(memory.extra[k, b] for b in mine[:-1]) > memory.capacity[k]
            for k, mine in held.items()
        ):
            continue
        loads = {k: (max(compute[k, b] for b in mine), sum(bits[b] for b in mine)) for k, mine in held.items()}
        if isinstance(link, FixedRateLink):
            rates = link.bits_per_second
            ends = [s + (load / rates[k] if rates[k] else np.inf if load else 0.0) for k, (s, load) in loads.items()]
            best = min(best, max(ends))
        else:
            best = min(best, latency_of([(*load, link.snr_hz[k]) for k, load in loads.items()], bandwidth))
    return best


def best_matching(latency, fits) -> float:
    """The bottleneck optimum over every one-to-one assignment; inf where there is none."""
    devices, blocks = latency.shape
    allowed = np.where(fits, latency, np.inf)
    return min(
        (max(allowed[k, b] for b, k in enumerate(chosen)) for chosen in permutations(range(devices), blocks)),
        default=np.inf,
    )
