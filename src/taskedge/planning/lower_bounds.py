"""Lower bounds of the latency for plans with any number of blocks on a device, idle devices included.

A deadline T is refuted if every plan needs more than the band for it. Let ``a[k, b] = bits_b / (T - compute[k, b])`` be
the rate that device k needs for block b, ``g_k`` the least bandwidth of a rate, and ``D_k(y) = max_w y rate_k(w) - w``
over 0 <= w <= bandwidth. A device with the blocks S has no more time for any of them than for the deepest, so it needs
``g_k(sum_S a)`` at least, and for any price y of its rate and any share s in 0 .. 1

    g_k(sum_S a)  >=  s * sum_S g_k(a)  +  (1 - s) * (y * sum_S a - D_k(y)) .

The first part holds since g is convex with g(0) = 0, the second by the definition of D. Both are sums over blocks, so

    band(T)  >=  sum_b min_k [ s_k g_k(a[k, b]) + (1 - s_k) y_k a[k, b] ]  -  sum_k (1 - s_k) D_k(y_k) .

Any s and y give a valid bound. They are raised by subgradient steps: a device that attracts more blocks than it can
serve becomes more expensive. With s = 1 it is the bound that lets devices serve all blocks at the same time.

Source: this project (Lagrangian relaxation of a convex program).
"""

from __future__ import annotations

import numpy as np

from taskedge.planning.bandwidth import least_bandwidths
from taskedge.planning.link_models import Bools, Floats, Ints
from taskedge.planning.problem import Instance
from taskedge.planning.pruning import Candidates, with_missing

MARGIN = 1e-9
"""Relative excess over the band that refutes a deadline: far above the rounding of the sums."""

GRID = 97
"""Points of each device's table of D, from 0 and 1e-8 of the band to the whole band."""

PRICE_STEPS = 60
"""Subgradient steps at each deadline."""

AVERAGE_EVERY = 10
"""Steps after which the averages of all prices are tried as well."""

BISECTIONS = 9
"""Deadlines that are tried with prices: the bracket shrinks 500-fold."""

PRECISION = 1e-7
"""Relative width of the bracket of the bound without prices."""

MAX_PRICED_PAIRS = 30_000
"""Pairs of devices and blocks up to which prices are tried."""


def shared_bound(instance: Instance, near: Candidates, latency: float) -> float:
    """Return the greatest deadline that is refuted although devices may serve several blocks at the same time.

    Args:
        instance: the problem.
        near: candidates of every block. Missing ones that are cheaper are found and used.
        latency: seconds of a plan.
    """
    while True:
        low, high = 0.0, latency
        while high - low > PRECISION * high:
            middle = 0.5 * (low + high)
            need = least_bandwidths(middle, near.seconds, instance.bits[:, None], near.device, instance.link)
            if need.min(axis=1).sum() > instance.bandwidth * (1 + MARGIN):
                low = middle
            else:
                high = middle
        near, complete = with_missing(instance, near, low)
        if complete:
            return low


def bound_of_all_plans(instance: Instance, latency: float) -> float:
    """Return seconds that no plan can beat, given the latency of one."""
    return priced_bound(instance, shared_bound(instance, every_pair(instance), latency), latency)


def every_pair(instance: Instance) -> Candidates:
    """Return all pairs of the instance as candidates."""
    device = np.tile(np.arange(instance.devices), (instance.blocks, 1))
    return Candidates(device, np.where(instance.fits, instance.compute, np.inf).T)


def priced_bound(instance: Instance, low: float, latency: float) -> float:
    """Return a refuted deadline between ``low``, which is refuted, and ``latency``, which a plan meets."""
    if instance.devices * instance.blocks > MAX_PRICED_PAIRS or latency <= 0:
        return low
    prices = _Prices(instance)
    high = latency * (1 - PRECISION)
    if high <= low or prices.refute(high):
        return max(low, high)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        if prices.refute(middle):
            low = middle
        else:
            high = middle
    return low


class _Prices:
    """Prices of the devices' rates and shares s, kept from one deadline to the next."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        every = np.arange(instance.devices)
        grid = np.concatenate([[0.0], np.geomspace(1e-8, 1.0, GRID - 1)]) * instance.bandwidth
        rate = instance.link.rate(every[:, None], grid)  # (devices, points)
        rise = np.diff(rate, axis=1)
        slope = np.diff(grid) / np.where(
            rise > 0, rise, np.inf
        )  # Hz per bit/s of each section, rising: rates are concave
        self.wired = ~(rate[:, -1] > rate[:, 1] * (1 + 1e-9))  # the band changes nothing
        self.largest = rate[:, -1]
        # the slope of section i lies between the derivatives at its ends, so up to there D is below its tangents
        self.price = np.maximum.accumulate(np.concatenate([np.zeros((instance.devices, 1)), slope], axis=1), axis=1)
        self.dual = _conjugate(self.price, rate, grid)
        self.bandwidth = instance.bandwidth
        self.y: Floats | None = None
        self.share = np.where(self.wired, 0.0, 0.5)

    def conjugate(self, y: Floats) -> tuple[Floats, Floats]:
        """Return upper bounds of D(y) and of its slope, by interpolation: D is convex."""
        every, points = np.arange(y.size), self.price.shape[1]
        end = np.clip((self.price < y[:, None]).sum(axis=1), 1, points - 1)
        price, dual = self.price[every, end - 1], self.dual[every, end - 1]
        slope = (self.dual[every, end] - dual) / np.maximum(self.price[every, end] - price, 1e-300)
        beyond = y > self.price[:, -1]  # there the whole band is used
        price, dual = np.where(beyond, self.price[:, -1], price), np.where(beyond, self.dual[:, -1], dual)
        slope = np.where(beyond, self.largest, slope)
        value = dual + slope * (y - price)
        return np.where(self.wired, y * self.largest, value), np.where(self.wired, self.largest, slope)

    def refute(self, deadline: float) -> bool:
        """Return whether some prices show that the band is not enough for the deadline."""
        instance = self.instance
        with np.errstate(all="ignore"):
            slack = deadline - instance.compute
            rate = np.where(instance.bits > 0, instance.bits / slack, 0.0)
            usable = instance.fits & (slack >= 0) & ((slack > 0) | (instance.bits == 0))
        every = np.arange(instance.devices)[:, None]
        single = least_bandwidths(deadline, instance.compute, instance.bits, every, instance.link)
        usable &= single <= instance.bandwidth
        if not usable.any(axis=0).all():
            return True
        rate, single = np.where(usable, rate, 0.0), np.where(usable, single, 0.0)
        if self.y is None:
            self.y = self._first_prices(rate, usable)
        y, share = self.y, self.share
        best, log_sum, share_sum = -np.inf, np.zeros_like(y), np.zeros_like(share)
        for step in range(1, PRICE_STEPS + 1):
            value, refuted, chosen = self._evaluate(y, share, rate, single, usable)
            log_sum, share_sum = log_sum + np.log(y), share_sum + share
            if step % AVERAGE_EVERY == 0 and not refuted:  # averages do not oscillate as the steps do
                mean = np.exp(log_sum / step), share_sum / step
                mean_value, refuted, _ = self._evaluate(*mean, rate, single, usable)
                if mean_value > max(best, value):
                    best, self.y, self.share = mean_value, *mean
            if value > best:
                best, self.y, self.share = value, y, share
            if refuted:
                return True
            y, share = self._next(y, share, rate, single, chosen, 0.5 / np.sqrt(step))
        return False

    def _evaluate(
        self, y: Floats, share: Floats, rate: Floats, single: Floats, usable: Bools
    ) -> tuple[float, bool, Ints]:
        """Return the bound of the band, whether it refutes the deadline, and the device that each block would take."""
        cost = np.where(usable, share[:, None] * single + ((1 - share) * y)[:, None] * rate, np.inf)
        chosen = np.argmin(cost, axis=0)
        total = float(cost[chosen, np.arange(chosen.size)].sum())
        value = total - float(((1 - share) * self.conjugate(y)[0]).sum())
        # prices of wired devices may all be multiplied, so among these alone any bound above 0 is without end
        limit = 0.0 if self.wired.all() else self.bandwidth
        return value, value > limit + MARGIN * (limit + total), chosen

    def _next(
        self, y: Floats, share: Floats, rate: Floats, single: Floats, chosen: Ints, length: float
    ) -> tuple[Floats, Floats]:
        """Return prices and shares after a step along the subgradient, relative to its terms."""
        blocks, devices = np.arange(chosen.size), y.size
        dual, served = self.conjugate(y)
        asked = np.bincount(chosen, rate[chosen, blocks], minlength=devices)
        alone = np.bincount(chosen, single[chosen, blocks], minlength=devices)
        gain = alone - y * asked + dual
        y = y * np.exp(length * (asked - served) / np.maximum(asked + served, 1e-300))
        scale = np.maximum(alone + y * asked + dual, 1e-300)
        share = np.where(self.wired, 0.0, np.clip(share + 0.5 * length * gain / scale, 0.0, 1.0))
        return np.clip(y, 1e-250, 1e250), share

    def _first_prices(self, rate: Floats, usable: Bools) -> Floats:
        """Return prices at which the devices with the whole payload's rate in equal parts are at the margin."""
        devices = rate.shape[0]
        share = self.bandwidth / min(devices, rate.shape[1])
        link, every = self.instance.link, np.arange(devices)
        rise = link.rate(every, share) - link.rate(every, share / 2)
        y = np.where(rise > 0, 0.5 * share / np.where(rise > 0, rise, 1.0), 0.0)
        typical = np.median(y[y > 0]) if (y > 0).any() else self.bandwidth / max(float(self.largest.max()), 1e-300)
        return np.asarray(np.where(y > 0, y, typical))


def _conjugate(price: Floats, rate: Floats, grid: Floats) -> Floats:
    """Return upper bounds of D at ``price[K, P]``: sections of the rate lie below the extensions of their neighbors."""
    devices, points = price.shape
    dual = np.zeros((devices, points))
    with np.errstate(all="ignore"):
        incline = np.diff(rate, axis=1) / np.diff(grid)  # bit/s per Hz, falling
    for k in range(devices):
        # in section i the rate is below the line of section i-1 from its start, and that of section i+1 from its end
        left = np.append(rate[k, -1], incline[k, :-1])
        left[0] = np.inf
        right = np.append(incline[k, 1:], 0.0)
        width = np.diff(grid)
        start, end = rate[k, :-1], rate[k, 1:]
        with np.errstate(all="ignore"):
            cross = np.where(np.isfinite(left) & (left > right), (end - start - right * width) / (left - right), 0.0)
        cross = np.clip(cross, 0.0, width)
        top = np.where(np.isfinite(left), start + np.where(np.isfinite(left), left, 0.0) * cross, end)
        corner_w, corner_r = grid[:-1] + cross, np.minimum(top, end)
        w, r = np.concatenate([grid, corner_w]), np.concatenate([rate[k], corner_r])
        dual[k] = np.maximum((price[k][:, None] * r - w).max(axis=1), 0.0)
    return dual
