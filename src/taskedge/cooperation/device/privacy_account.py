"""How much of its privacy budget a device has spent, kept in a file that outlives the process.

The accountants are those of Opacus (Apache-2.0). A release is a sum of clipped rows with Gaussian noise, over a sample
that each row is in with the same probability (the subsampled Gaussian mechanism). Sources: differentially private SGD,
arXiv 1607.00133; numerical composition, arXiv 2106.02848; Rényi accounting, arXiv 1908.10530.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from taskedge.errors import InputError, TaskEdgeError
from taskedge.io.atomic import write_atomic

FORMAT, VERSION = "taskedge.privacy", 1
MAX_STEPS = 10_000_000
VACUOUS_EPSILON = 100.0
"""Above this an ε protects nothing, so that it needs no closer bound."""
Releases = tuple[tuple[float, float, int], ...]
"""(noise, rate, steps) of releases of one kind."""


class BudgetSpent(TaskEdgeError):
    """The device's privacy budget does not cover another answer."""


@dataclass(frozen=True)
class PrivacyBudget:
    """Bound on what the owner of a device allows to be learned of any one of its rows.

    Attributes:
        epsilon: The budget, over all runs.
        delta: Probability with which it may be exceeded; it must be below 1 / rows.
        noise: Standard deviation of the noise, as a multiple of ``clip``.
        clip: Largest l2 norm that a row's gradient counts with.
    """

    epsilon: float
    delta: float = 1e-5
    noise: float = 1.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        positive = {"epsilon": self.epsilon, "noise": self.noise, "clip": self.clip}
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise InputError(f"a privacy budget with {name} {value:g}: it must be above 0 and finite")
        if not 0 < self.delta < 1:
            raise InputError(f"a privacy budget with delta {self.delta:g}: it must be between 0 and 1")


class PrivacyAccount:
    """The releases of one device's rows so far.

    Args:
        budget: The owner's limits.
        path: File of the releases. It is read if it exists: a budget is for the rows, however often they are used.

    Raises:
        InputError: Opacus is not installed, or the file is no account, or of a newer version.
    """

    def __init__(self, budget: PrivacyBudget, path: Path) -> None:
        _opacus()
        self.budget, self._path = budget, path
        self._releases: dict[tuple[float, float], int] = {}
        if path.exists():
            self._releases = _read(path)

    @property
    def steps(self) -> int:
        """Number of releases so far."""
        return sum(self._releases.values())

    @property
    def epsilon(self) -> float:
        """The epsilon spent so far, at the budget's delta."""
        return self._epsilon_with(1.0, 0)

    def steps_left(self, rate: float) -> int:
        """Return how many more releases fit into the budget, each over a sample of that rate."""
        low, high = 0, 1
        while high < MAX_STEPS and self._fits(rate, high):
            low, high = high, 4 * high
        while high - low > max(1, low // 100):  # within one percent, and never too many
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(rate, middle) else (low, middle)
        return low

    def check(self, rate: float, steps: int) -> None:
        """Raise :class:`BudgetSpent` if the budget does not cover further releases."""
        if not self._fits(rate, steps):
            budget = self.budget
            raise BudgetSpent(
                f"the privacy budget is spent: ε = {self.epsilon:.3f} of {budget.epsilon:g} at δ = {budget.delta:g} "
                f"after {self.steps:,} steps, and {steps} more would exceed it"
            )

    def spend(self, rate: float, steps: int) -> None:
        """Write down releases. To be called before their result leaves the process.

        Another process may have the same account, such as a successor of one that hangs: what it wrote counts as well.

        Raises:
            BudgetSpent: The budget does not cover them; nothing was written down.
            OSError: The file cannot be written, so that the result must not leave.
        """
        with self._path.with_name(f"{self._path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._path.exists():
                for key, count in _read(self._path).items():
                    self._releases[key] = max(count, self._releases.get(key, 0))
            self.check(rate, steps)
            releases = dict(self._releases)
            key = (self.budget.noise, rate)
            releases[key] = releases.get(key, 0) + steps
            stored = [[noise, of_rate, count] for (noise, of_rate), count in releases.items()]
            content = {"format": FORMAT, "version": VERSION, "releases": stored}
            write_atomic(self._path, json.dumps(content, indent=1).encode())
            self._releases = releases

    def __str__(self) -> str:
        return f"ε = {self.epsilon:.3f} of {self.budget.epsilon:g} at δ = {self.budget.delta:g} in {self.steps:,} steps"

    def _fits(self, rate: float, steps: int) -> bool:
        return self._epsilon_with(rate, steps) <= self.budget.epsilon

    def _epsilon_with(self, rate: float, steps: int) -> float:
        releases = dict(self._releases)
        if steps:
            key = (self.budget.noise, rate)
            releases[key] = releases.get(key, 0) + steps
        return spent_epsilon(tuple((*key, count) for key, count in sorted(releases.items())), self.budget.delta)


@lru_cache(maxsize=4096)
def spent_epsilon(releases: Releases, delta: float) -> float:
    """Return the ε of releases at a δ: the smaller of two valid bounds, numerical (PRV) and Rényi.

    Above :data:`VACUOUS_EPSILON` it is the Rényi bound, because the grid of the other grows with ε, to terabytes.
    """
    if not releases:
        return 0.0
    accountants = _opacus()
    bounds: list[float] = []
    for accountant in (accountants.RDPAccountant(), accountants.PRVAccountant()):
        if bounds and bounds[0] > VACUOUS_EPSILON:
            break
        accountant.history = [tuple(release) for release in releases]
        try:
            bounds.append(float(accountant.get_epsilon(delta)))
        except (RuntimeError, ValueError, OverflowError):  # PRV has no grid for extreme noise or very few steps
            continue
    if not bounds:
        raise InputError(f"no accountant gives an ε for {releases} at δ = {delta:g}: use more noise")
    return min(bounds)


def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Return the smallest noise, within one percent, with which ``steps`` releases cost at most ``epsilon``."""
    low, high = 0.2, 0.4
    while spent_epsilon(((high, rate, steps),), delta) > epsilon:
        low, high = high, 2 * high
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if spent_epsilon(((middle, rate, steps),), delta) <= epsilon else (middle, high)
    return high


def _read(path: Path) -> dict[tuple[float, float], int]:
    try:
        content = json.loads(path.read_bytes())
        known = content["format"] == FORMAT and content["version"] <= VERSION
        releases: Sequence[Any] = content["releases"] if known else []
        found = {(float(noise), float(rate)): int(steps) for noise, rate, steps in releases}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no account of a privacy budget ({type(error).__name__}: {error})") from None
    if not known:
        raise InputError(f"{path}: version {content['version']} of {content['format']}: install a newer taskedge")
    return found


def _opacus() -> Any:
    try:
        import opacus.accountants as accountants
    except ImportError:
        raise InputError("a privacy budget needs opacus: pip install 'taskedge[dp]'") from None
    return accountants
