"""Energy of a section of code in joules, from the machine's own counter if it has one.

RAPL counts the processor package. Jetson's INA3221 rails and NVML give watts, which are sampled and integrated. Reading
RAPL needs root on most systems. Without a readable counter, the energy is the user's watts times the seconds. The
result names its source.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

RAPL = Path("/sys/class/powercap")
RAILS = Path("/sys/bus/i2c/drivers/ina3221")
SAMPLE_SECONDS = 0.05

Source = Literal["rapl", "jetson", "nvml", "user watts", "none"]


@dataclass
class EnergyMeter:
    """Context manager that measures the energy of its block.

    Attributes:
        watts: power of the machine, for a machine without a readable counter.
        rapl, rails: folders of the counters.
        source: the counter, after the block.
        joules: energy of the block, after it; None without a counter and without ``watts``.
        seconds: duration of the block, after it.
    """

    watts: float | None = None
    rapl: Path = RAPL
    rails: Path = RAILS
    source: Source = "none"
    joules: float | None = None
    seconds: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def __enter__(self) -> EnergyMeter:
        self._zones = [
            zone for zone in sorted(self.rapl.glob("intel-rapl:?")) if _number(zone / "energy_uj") is not None
        ]
        self._before = [_number(zone / "energy_uj") or 0 for zone in self._zones]
        sampled = None if self._zones else self._sampled()
        self._thread = threading.Thread(target=self._integrate, args=(sampled,), daemon=True) if sampled else None
        self._sum = self._span = 0.0
        self._start = time.perf_counter()
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        if self._zones:
            self.source, self.joules = "rapl", sum(map(self._used, self._zones, self._before)) / 1e6
        elif self._thread:
            self._stop.set()
            self._thread.join()
            self.joules = self._sum / self._span * self.seconds  # mean power: the sampler ran longer
        elif self.watts is not None:
            self.source, self.joules = "user watts", self.watts * self.seconds

    def _used(self, zone: Path, before: int) -> int:
        """Return the microjoules since ``before``. The counter wraps at the range that it states."""
        after = _number(zone / "energy_uj") or 0
        return after - before if after >= before else after - before + (_number(zone / "max_energy_range_uj") or 0)

    def _sampled(self) -> Callable[[], float] | None:
        """Return a function that reads watts, or None, and set the source."""
        rails = sorted(self.rails.glob("*/hwmon/hwmon*/curr*_input"))
        pairs = [(rail, rail.with_name(rail.name.replace("curr", "in"))) for rail in rails]
        pairs = [(amps, volts) for amps, volts in pairs if _number(amps) is not None and _number(volts) is not None]
        if pairs:
            self.source = "jetson"
            return lambda: sum((_number(a) or 0) * (_number(v) or 0) for a, v in pairs) / 1e6  # mA·mV
        gpu = _nvml()
        if gpu:
            self.source = "nvml"
        return gpu

    def _integrate(self, watts: Callable[[], float]) -> None:
        """Sum up samples until the block ends."""
        last = self._start
        while True:
            ended = self._stop.wait(SAMPLE_SECONDS)
            now = time.perf_counter()
            self._sum += watts() * (now - last)
            self._span += now - last
            last = now
            if ended:
                return


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _nvml() -> Callable[[], float] | None:
    """Return a function that reads the watts of the NVIDIA GPU, or None without torch on a GPU or without a counter."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        torch.cuda.power_draw()
    except Exception:  # the driver's bindings are missing or refuse: a machine without a counter is no fault
        return None
    return lambda: torch.cuda.power_draw() / 1e3
