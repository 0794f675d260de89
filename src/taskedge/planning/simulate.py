"""Rounds of a fleet whose links fade, drift and come and go, planned anew every round by every solver.

The setting follows LoLa DEFT (arXiv 2407.09873); the churn and drift processes are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from taskedge.errors import InputError
from taskedge.planning.fleet_costs import Costs
from taskedge.planning.fleet_spec import Fleet
from taskedge.planning.link_models import FixedRateLink, Link, MixedLink, ShannonLink
from taskedge.planning.plan import fleet_link, try_solver
from taskedge.profiling.profile_file import Row

Floats = NDArray[np.float64]
Fading = Literal["rayleigh", "none"]

RETURN = 0.5  # chance that an absent device is back in the next round
MEMORY = 0.9  # correlation of a device's drift from one round to the next


class Summary(Row):
    """One solver over all rounds. ``saved_ratio``: how much less the first solver takes, where both have a plan."""

    mean_seconds: float | None
    median_seconds: float | None
    p95_seconds: float | None
    worst_seconds: float | None
    rounds_without_plan: int
    saved_ratio: float | None


class Simulation(Row):
    """Latency of every round and solver; None where no plan exists."""

    model: str
    rounds: int
    devices: int
    fading: Fading
    churn: float
    drift_db: float
    seed: int
    devices_present: list[int]
    latency_seconds: dict[str, list[float | None]]
    summary: dict[str, Summary]

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


def simulate(
    fleet: Fleet,
    costs: Costs,
    model: str,
    solvers: Sequence[str],
    rounds: int,
    rng: np.random.Generator,
    *,
    fading: Fading = "rayleigh",
    churn: float = 0.0,
    drift_db: float = 0.0,
    seed: int = 0,
    on_round: Callable[[int], None] = lambda _: None,
) -> Simulation:
    """Replays rounds; all solvers see the same ones.

    Args:
        fleet, costs: who, and :func:`~taskedge.planning.fleet_costs.fleet_costs`.
        model: its name, for the record.
        solvers: registered names; the first is the one whose savings are stated.
        rounds: how many.
        rng: every draw comes from here.
        fading: ``rayleigh`` multiplies each gain by an exponential variable of mean 1, anew every round (block fading).
        churn: chance that a present device is away in the next round; an absent one returns with chance 1/2.
        drift_db: standard deviation of a slow log-normal change of each gain (first-order, correlation 0.9 per round).
        seed: recorded.
        on_round: called with 1 after every round.

    Returns:
        Latencies with the server's aggregation, and their summary.
    """
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: give at least 1")
    latency: dict[str, list[float | None]] = {name: [] for name in solvers}
    present_counts = []
    for present, gains in draw_rounds(fleet, rounds, rng, fading, churn, drift_db):
        present_counts.append(int(present.sum()))
        turn = int(rng.integers(2**31))  # of solvers that draw themselves
        link = _only(fleet_link(fleet, gains), present) if present.any() else None
        here = _of(costs, present)
        for name in latency:
            found = None if link is None else try_solver(name, here, link, fleet.channel.bandwidth_hz, seed=turn)
            latency[name].append(None if found is None else found.latency + fleet.server.aggregation_seconds)
        on_round(1)
    return Simulation(
        model=model,
        rounds=rounds,
        devices=len(fleet.device),
        fading=fading,
        churn=churn,
        drift_db=drift_db,
        seed=seed,
        devices_present=present_counts,
        latency_seconds=latency,
        summary={name: summarise(series, latency[solvers[0]]) for name, series in latency.items()},
    )


def draw_rounds(
    fleet: Fleet, rounds: int, rng: np.random.Generator, fading: Fading, churn: float, drift_db: float
) -> Iterator[tuple[NDArray[np.bool_], Floats]]:
    """Yields, per round, who is present [K] and the power gains [K] (NaN for wired devices). All present at first."""
    mean, devices = fleet.gains(), len(fleet.device)
    present = np.ones(devices, dtype=bool)
    drift = drift_db * rng.standard_normal(devices)
    for _ in range(rounds):
        fade = rng.exponential(size=devices) if fading == "rayleigh" else np.ones(devices)
        yield present.copy(), mean * 10 ** (drift / 10) * fade
        coin = rng.random(devices)
        present = np.where(present, coin >= churn, coin < RETURN)
        drift = MEMORY * drift + np.sqrt(1 - MEMORY**2) * drift_db * rng.standard_normal(devices)


def summarise(series: Sequence[float | None], first: Sequence[float | None]) -> Summary:
    """Mean, quantiles and failures of one solver's rounds, and what ``first`` saves against it."""
    known = np.array([seconds for seconds in series if seconds is not None])
    both = [(a, b) for a, b in zip(first, series, strict=True) if a is not None and b is not None]
    theirs = sum(b for _, b in both)
    saved = 1 - sum(a for a, _ in both) / theirs if theirs > 0 else None
    return Summary(
        mean_seconds=float(known.mean()) if known.size else None,
        median_seconds=float(np.median(known)) if known.size else None,
        p95_seconds=float(np.quantile(known, 0.95)) if known.size else None,
        worst_seconds=float(known.max()) if known.size else None,
        rounds_without_plan=len(series) - known.size,
        saved_ratio=saved,
    )


def _of(costs: Costs, present: NDArray[np.bool_]) -> Costs:
    """The rows of the devices that are present."""
    return replace(
        costs,
        down=costs.down[present],
        compute=costs.compute[present],
        memory=costs.memory[present],
        extra=costs.extra[present],
        capacity=costs.capacity[present],
    )


def _only(link: Link, present: NDArray[np.bool_]) -> Link:
    """The link of the devices that are present."""
    if isinstance(link, ShannonLink):
        return ShannonLink(link.snr_hz[present])
    if isinstance(link, FixedRateLink):
        return FixedRateLink(link.bits_per_second[present])
    assert isinstance(link, MixedLink)
    radio, cable = ShannonLink(link.radio.snr_hz[present]), FixedRateLink(link.cable.bits_per_second[present])
    return MixedLink(radio, cable, link.wired[present])
