"""Models of the uplinks: bandwidth to bit rate, and back.

Each method takes arrays of devices (integer indices) that broadcast with the other arguments. No result is ever NaN.
Solvers use a link only through :class:`Link`, so a new channel model is a new class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taskedge.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

NEWTON_STEPS = 8
"""Steps of both Newton iterations below. Five reach the last bit; the rest is margin."""


class Link(Protocol):
    """Channel between the devices and the server."""

    @property
    def devices(self) -> int:
        """Number of devices."""

    def rate(self, device: ArrayLike, bandwidth: ArrayLike) -> Floats:
        """Return the bit/s of ``device`` with ``bandwidth`` Hz; ``inf`` Hz gives the limit."""

    def least_bandwidth(self, device: ArrayLike, rate: ArrayLike) -> Floats:
        """Return the least Hz with which ``device`` reaches ``rate`` bit/s; ``inf`` if no bandwidth is enough."""

    def fair_bandwidth(self, device: ArrayLike, bits: ArrayLike, weight: ArrayLike, price: ArrayLike) -> Floats:
        """Return the Hz ``w`` that minimize ``weight * bits / rate(device, w) + price * w``."""

    def chains(self) -> list[Ints]:
        """Return every device once, in lists sorted best first.

        Within a list an earlier device never needs more bandwidth than a later one for the same rate. Solvers prune a
        fleet along these lists.
        """


def _per_device(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} must hold one figure per device (shape [K], K >= 1), not shape {array.shape}")
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if bad.size:
        raise InputError(f"{name} must be finite and not negative; device {bad[0]} has {array[bad[0]]}")
    return array


@dataclass(frozen=True, eq=False)
class ShannonLink:
    """A shared radio channel: ``rate = w * log2(1 + snr_hz / w)`` bit/s.

    The rate grows with ``w`` but stays below ``snr_hz / ln 2``, so some deadlines cannot be met with any bandwidth.

    Attributes:
        snr_hz: ``[K]`` ``p * h / N0`` in Hz: received power over noise density.

    Source: LoLa DEFT (arXiv 2407.09873), system model.
    """

    snr_hz: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "snr_hz", _per_device("snr_hz", self.snr_hz))

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.snr_hz.size

    def rate(self, device: ArrayLike, bandwidth: ArrayLike) -> Floats:
        """Return the bit/s, see :meth:`Link.rate`."""
        snr, w = np.broadcast_arrays(self.snr_hz[np.asarray(device)], np.asarray(bandwidth, dtype=np.float64))
        with np.errstate(all="ignore"):
            ratio = np.minimum(snr / w, 1e300)  # a finite ceiling: w -> 0 gives 0, not 0 * inf
            rate = np.where(ratio < 1e-12, snr, w * np.log1p(ratio)) / np.log(2.0)
        return np.where((w > 0) & (snr > 0), rate, 0.0)

    def least_bandwidth(self, device: ArrayLike, rate: ArrayLike) -> Floats:
        """Return the least Hz, see :meth:`Link.least_bandwidth`.

        With ``x = snr / w`` and ``y = ln(1 + x)``, the rate equation reads ``ln((e^y - 1) / y) = c`` where
        ``c = -ln(rate * ln 2 / snr)``. The left side is convex with slope between 1/2 and 1: Newton's method converges
        from anywhere, and neither end (rate near 0, rate near the limit) loses digits the way a Lambert W does.

        Source: this project.
        """
        snr, rate = np.broadcast_arrays(self.snr_hz[np.asarray(device)], np.asarray(rate, dtype=np.float64))
        with np.errstate(all="ignore"):
            share = rate * np.log(2.0) / snr  # of the limit: within (0, 1) if the rate can be reached
            c = -np.log(share)
            y = c + np.log1p(c)
            for _ in range(NEWTON_STEPS):
                value, slope = _log_growth(y)
                y = np.maximum(y - (value - c) / slope, 0.5 * c)
            need = snr / np.expm1(y)
        need = np.where((snr > 0) & (share < 1) & (c > 0), need, np.inf)
        return np.where(rate <= 0, 0.0, need)

    def fair_bandwidth(self, device: ArrayLike, bits: ArrayLike, weight: ArrayLike, price: ArrayLike) -> Floats:
        """Return the cheapest Hz, see :meth:`Link.fair_bandwidth`.

        With ``x = snr / w`` the optimum solves ``x^2 (ln(1+x) - x/(1+x)) / ln(1+x)^2 = price * snr / a``,
        ``a = weight * bits * ln 2 / snr``. In logarithms the slope is close to 2 everywhere, so Newton's method in
        ``ln x`` needs no safeguard but a clamp.

        Source: this project; arXiv 2407.09873 has the closed form for a linear rate.
        """
        arrays = (np.asarray(v, dtype=np.float64) for v in (bits, weight, price))
        snr, bits, weight, price = np.broadcast_arrays(self.snr_hz[np.asarray(device)], *arrays)
        with np.errstate(all="ignore"):
            target = np.log(price) + 2 * np.log(snr) - np.log(weight) - np.log(bits) - np.log(np.log(2.0))
            start = 0.5 * (target + np.log(2.0))  # exact for small x
            z = np.clip(np.where(start > 1, start + 0.5 * np.log(np.maximum(start, 1.0)), start), -300, 300)
            for _ in range(NEWTON_STEPS):
                x = np.exp(z)
                log1p, tail = np.log1p(x), _upload_tail(x)
                value = 2 * z + np.log(tail) - 2 * np.log(log1p)
                slope = 2 + (x / (1 + x)) ** 2 / tail - 2 * x / ((1 + x) * log1p)
                z = np.clip(z - (value - target) / slope, -300, 300)
            need = snr * np.exp(-z)
        need = np.where(price > 0, need, np.inf)
        return np.where((weight > 0) & (bits > 0) & (snr > 0), need, 0.0)

    def chains(self) -> list[Ints]:
        """Return all devices in one list, by falling signal-to-noise ratio."""
        return [np.argsort(-self.snr_hz, kind="stable")]


def _log_growth(y: Floats) -> tuple[Floats, Floats]:
    """Return ``ln((e^y - 1) / y)`` for ``y > 0`` and its derivative, without overflow or cancellation."""
    tail = -np.expm1(-y)
    value, slope = y + np.log(tail / y), 1 / tail - 1 / y
    small = y < 0.02
    if small.any():
        value = np.where(small, y / 2 + y**2 / 24 - y**4 / 2880, value)
        slope = np.where(small, 0.5 + y / 12 - y**3 / 720, slope)
    return value, slope


def _upload_tail(x: Floats) -> Floats:
    """Return ``ln(1 + x) - x / (1 + x)`` for ``x > 0``; by its series where the difference would cancel."""
    return np.where(x < 1e-3, x**2 * (0.5 - x * (2 / 3 - x * (0.75 - 0.8 * x))), np.log1p(x) - x / (1 + x))


@dataclass(frozen=True, eq=False)
class FixedRateLink:
    """Wired uplinks of ``bits_per_second[K]``, which take no share of the radio band."""

    bits_per_second: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits_per_second", _per_device("bits_per_second", self.bits_per_second))

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.bits_per_second.size

    def rate(self, device: ArrayLike, bandwidth: ArrayLike) -> Floats:
        """Return the fixed bit/s of the devices."""
        rate, _ = np.broadcast_arrays(self.bits_per_second[np.asarray(device)], np.asarray(bandwidth))
        return np.array(rate)

    def least_bandwidth(self, device: ArrayLike, rate: ArrayLike) -> Floats:
        """Return 0 if the device has the rate, else ``inf``."""
        # a deadline computed from this very rate must not fail by the last bit: hence the tolerance
        return np.where(np.asarray(rate) <= self.bits_per_second[np.asarray(device)] * (1 + 1e-12), 0.0, np.inf)

    def fair_bandwidth(self, device: ArrayLike, bits: ArrayLike, weight: ArrayLike, price: ArrayLike) -> Floats:
        """Return 0: bandwidth does not change the rate."""
        shape = np.broadcast_shapes(*(np.shape(v) for v in (device, bits, weight, price)))
        return np.zeros(shape)

    def chains(self) -> list[Ints]:
        """Return all devices in one list, by falling rate."""
        return [np.argsort(-self.bits_per_second, kind="stable")]


@dataclass(frozen=True, eq=False)
class MixedLink:
    """Radio and wired uplinks: device k is wired if ``wired[k]``. Both parts have K devices."""

    radio: ShannonLink
    cable: FixedRateLink
    wired: Bools

    def __post_init__(self) -> None:
        object.__setattr__(self, "wired", np.asarray(self.wired, dtype=bool))
        if not self.radio.devices == self.cable.devices == self.wired.size:
            raise InputError(
                f"the parts of a mixed link must have the same devices, not {self.radio.devices} on the radio, "
                f"{self.cable.devices} wired and {self.wired.size} flags"
            )

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.wired.size

    def rate(self, device: ArrayLike, bandwidth: ArrayLike) -> Floats:
        """Return the bit/s, see :meth:`Link.rate`."""
        return self._choose("rate", device, bandwidth)

    def least_bandwidth(self, device: ArrayLike, rate: ArrayLike) -> Floats:
        """Return the least Hz, see :meth:`Link.least_bandwidth`."""
        return self._choose("least_bandwidth", device, rate)

    def fair_bandwidth(self, device: ArrayLike, bits: ArrayLike, weight: ArrayLike, price: ArrayLike) -> Floats:
        """Return the cheapest Hz, see :meth:`Link.fair_bandwidth`."""
        return self._choose("fair_bandwidth", device, bits, weight, price)

    def chains(self) -> list[Ints]:
        """Return one list of radio devices and one of wired devices."""
        chains = [chain[self.wired[chain] == wired] for link, wired in self._parts() for chain in link.chains()]
        return [chain for chain in chains if chain.size]

    def _parts(self) -> list[tuple[Link, bool]]:
        return [(self.radio, False), (self.cable, True)]

    def _choose(self, method: str, device: ArrayLike, *args: Any) -> Floats:
        """Call a method of both parts, and take each device's result from its own part."""
        radio, cable = getattr(self.radio, method)(device, *args), getattr(self.cable, method)(device, *args)
        return np.asarray(np.where(self.wired[np.asarray(device)], cable, radio))


@dataclass(frozen=True, eq=False)
class SelectedLink:
    """Some devices of another link: device i is ``link``'s device ``devices[i]``."""

    link: Link
    selected: Ints

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.selected.size

    def rate(self, device: ArrayLike, bandwidth: ArrayLike) -> Floats:
        """Return the bit/s, see :meth:`Link.rate`."""
        return self.link.rate(self.selected[np.asarray(device)], bandwidth)

    def least_bandwidth(self, device: ArrayLike, rate: ArrayLike) -> Floats:
        """Return the least Hz, see :meth:`Link.least_bandwidth`."""
        return self.link.least_bandwidth(self.selected[np.asarray(device)], rate)

    def fair_bandwidth(self, device: ArrayLike, bits: ArrayLike, weight: ArrayLike, price: ArrayLike) -> Floats:
        """Return the cheapest Hz, see :meth:`Link.fair_bandwidth`."""
        return self.link.fair_bandwidth(self.selected[np.asarray(device)], bits, weight, price)

    def chains(self) -> list[Ints]:
        """Return the selected devices in the order of the chains of ``link``."""
        place = np.full(self.link.devices, -1)
        place[self.selected] = np.arange(self.selected.size)
        chains = [place[chain] for chain in self.link.chains()]
        return [chain[chain >= 0] for chain in chains if (chain >= 0).any()]
