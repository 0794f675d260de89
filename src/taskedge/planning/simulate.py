"""Simulation of rounds with fading links and devices that leave and return. Every solver plans every round.

Source: LoLa DEFT (arXiv 2407.09873) for the setting; this project for the churn and drift processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from taskedge.errors import InputError
from taskedge.planning.fleet_costs import FleetCosts
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.planning.link_models import Bools, Floats, SelectedLink
from taskedge.planning.plan import effective_solver, fleet_link, try_solver
from taskedge.planning.problem import JointPlan
from taskedge.profiling.profile_file import StrictRecord

Fading = Literal["rayleigh", "none"]

RETURN_PROBABILITY = 0.5
"""Probability that an absent device is back in the next round."""

DRIFT_CORRELATION = 0.9
"""Correlation of a device's drift between consecutive rounds."""


class Summary(StrictRecord):
    """Latency of one solver over all rounds.

    ``saved_ratio`` is the share of this time that the first solver saves, over the rounds in which both have a plan.
    """

    mean_seconds: float | None
    median_seconds: float | None
    p95_seconds: float | None
    worst_seconds: float | None
    rounds_without_plan: int
    saved_ratio: float | None


class Simulation(StrictRecord):
    """Latency of every round and solver; None for a round without a plan."""

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
        """Return the text of the result file."""
        return self.model_dump_json(indent=2) + "\n"


def simulate(
    fleet: FleetSpec,
    costs: FleetCosts,
    model: str,
    solvers: Sequence[str],
    rounds: int,
    rng: np.random.Generator,
    *,
    fading: Fading = "rayleigh",
    churn: float = 0.0,
    drift_db: float = 0.0,
    seed: int = 0,
    on_round: Callable[[int], object] = lambda _: None,
) -> Simulation:
    """Simulate rounds. All solvers see the same ones.

    Args:
        fleet: devices and channel.
        costs: :func:`~taskedge.planning.fleet_costs.fleet_costs` of the fleet.
        model: name of the model, for the record.
        solvers: registered names. The summary states what the first one saves.
        rounds: number of rounds.
        rng: source of all random draws.
        fading: ``rayleigh`` multiplies each gain by a new exponential variable of mean 1 every round (block fading).
        churn: probability that a present device is absent in the next round. An absent one returns with probability
            1/2.
        drift_db: standard deviation of a slow log-normal change of each gain (first-order, correlation 0.9 per round).
        seed: seed of ``rng``, for the record.
        on_round: called with 1 after every round.

    Returns:
        Latencies, the server's aggregation included, and their summary.

    Raises:
        InputError: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: give at least 1")
    latency: dict[str, list[float | None]] = {name: [] for name in solvers}
    present_counts = []
    for present, gains in draw_rounds(fleet, rounds, rng, fading, churn, drift_db):
        present_counts.append(int(present.sum()))
        solver_seed = int(rng.integers(2**31))  # for solvers that draw random numbers
        link = SelectedLink(fleet_link(fleet, gains), np.flatnonzero(present)) if present.any() else None
        present_costs = _restrict_costs(costs, present)
        plans: dict[str, JointPlan | None] = {}  # several names may stand for one solver: plan once
        for name, series in latency.items():
            plan = None
            if link is not None:
                effective = effective_solver(name, *present_costs.compute.shape)
                if effective not in plans:
                    plans[effective] = try_solver(
                        effective, present_costs, link, fleet.channel.bandwidth_hz, seed=solver_seed
                    )
                plan = plans[effective]
            series.append(None if plan is None else plan.latency + fleet.server.aggregation_seconds)
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
        summary={name: summarize(series, latency[solvers[0]]) for name, series in latency.items()},
    )


def draw_rounds(
    fleet: FleetSpec, rounds: int, rng: np.random.Generator, fading: Fading, churn: float, drift_db: float
) -> Iterator[tuple[Bools, Floats]]:
    """Yield for each round which devices are present [K] and their power gains [K], NaN for wired devices.

    All devices are present in the first round.
    """
    mean, devices = fleet.gains(), len(fleet.device)
    present = np.ones(devices, dtype=bool)
    drift = drift_db * rng.standard_normal(devices)
    for _ in range(rounds):
        fade = rng.exponential(size=devices) if fading == "rayleigh" else np.ones(devices)
        yield present.copy(), mean * 10 ** (drift / 10) * fade
        coin = rng.random(devices)
        present = np.where(present, coin >= churn, coin < RETURN_PROBABILITY)
        step = np.sqrt(1 - DRIFT_CORRELATION**2) * drift_db * rng.standard_normal(devices)
        drift = DRIFT_CORRELATION * drift + step


def summarize(series: Sequence[float | None], first: Sequence[float | None]) -> Summary:
    """Return mean, quantiles and failures of one solver's rounds, and the share of time that ``first`` saves."""
    finished = np.array([seconds for seconds in series if seconds is not None])
    both = [(a, b) for a, b in zip(first, series, strict=True) if a is not None and b is not None]
    total = sum(b for _, b in both)
    saved = 1 - sum(a for a, _ in both) / total if total > 0 else None
    return Summary(
        mean_seconds=float(finished.mean()) if finished.size else None,
        median_seconds=float(np.median(finished)) if finished.size else None,
        p95_seconds=float(np.quantile(finished, 0.95)) if finished.size else None,
        worst_seconds=float(finished.max()) if finished.size else None,
        rounds_without_plan=len(series) - finished.size,
        saved_ratio=saved,
    )


def _restrict_costs(costs: FleetCosts, present: Bools) -> FleetCosts:
    """Return the costs of the present devices."""
    return replace(
        costs,
        down=costs.down[present],
        compute=costs.compute[present],
        memory=costs.memory[present],
        extra=costs.extra[present],
        capacity=costs.capacity[present],
    )
