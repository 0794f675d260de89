"""Data of the fleet file: server, channel, model and devices."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from taskedge.profiling.profile_file import NonNegative, Positive, Profile, StrictRecord


class ServerSpec(StrictRecord):
    """The server. It sends the trained values to every device at the same rate, and aggregates the answers."""

    downlink_bits_per_second: Positive = 50e6
    aggregation_seconds: NonNegative = 0.0


class ChannelSpec(StrictRecord):
    """The shared radio uplink."""

    bandwidth_hz: Positive
    noise_dbm_per_hz: Annotated[float, Field(ge=-400, le=100)] = -174.0
    bytes_per_value: Positive = 4.0
    reference_gain_db: Annotated[float, Field(ge=-400, le=100)] = -30.0  # gain at one meter
    path_loss_exponent: Annotated[float, Field(ge=1, le=10)] = 3.0


class ModelSpec(StrictRecord):
    """The model that the fleet trains, unless the command line names one."""

    path: str
    budget: str = "0.1%"
    sequence_tokens: Annotated[int, Field(ge=1)] = 128


DEVICE_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
"""Pattern of the name of an enrolled device: it becomes part of file names, certificates and subjects of messages."""
_NAME_IN_FILE = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\z"
"""In a fleet file a name may have dots as well. None can lead out of a folder."""


class DeviceSpec(StrictRecord):
    """One device: its speed, its memory and its link."""

    name: Annotated[str, Field(min_length=1, pattern=_NAME_IN_FILE)]
    profile: str | None = None
    flops_per_second: Positive | None = None
    utilisation_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    memory_bytes: Positive
    reserved_bytes: NonNegative = 0.0  # memory used by other programs
    tokens_per_round: Positive
    batch_sequences: Annotated[int, Field(ge=1)] = 8
    transmit_watts: Positive | None = None
    gain_db: Annotated[float, Field(ge=-400, le=100)] | None = None
    distance_metres: Positive | None = None
    wired_bits_per_second: Positive | None = None

    _profile: Profile | None = PrivateAttr(default=None)

    @property
    def measured(self) -> Profile | None:
        """The profile of the file ``profile``, read with the fleet file; None without one."""
        return self._profile

    @property
    def flops(self) -> float:
        """Sustained FLOP/s of a device without a profile."""
        assert self.flops_per_second is not None
        assert self.utilisation_ratio is not None
        return self.flops_per_second * self.utilisation_ratio


class FleetSpec(StrictRecord):
    """Content of a fleet file: everything that a plan needs besides the model."""

    server: ServerSpec = ServerSpec()
    channel: ChannelSpec
    model: ModelSpec | None = None
    device: Annotated[list[DeviceSpec], Field(min_length=1)]

    def gains(self) -> NDArray[np.float64]:
        """Return the mean power gain of each device's link, [K]; NaN for wired devices.

        This is ``gain_db`` if given, else log-distance path loss: the reference gain minus
        10·exponent·log10(max(distance, 1 m)).
        """
        gain = [
            math.nan if device.wired_bits_per_second is not None else self._gain_db(device) for device in self.device
        ]
        return np.asarray(10 ** (np.array(gain) / 10), dtype=np.float64)

    def snr_hz(self, gains: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return p·h/N0 [Hz] of each device at power gains ``gains`` [K]; NaN for wired devices."""
        noise = 10 ** (self.channel.noise_dbm_per_hz / 10) / 1e3  # W/Hz
        power = np.array([device.transmit_watts or math.nan for device in self.device])
        return np.asarray(power * gains / noise, dtype=np.float64)

    def wired(self) -> NDArray[np.float64]:
        """Return the fixed uplink rate [bit/s] of each device, [K]; NaN for radio devices."""
        return np.array([device.wired_bits_per_second or math.nan for device in self.device])

    def _gain_db(self, device: DeviceSpec) -> float:
        if device.gain_db is not None:
            return device.gain_db
        assert device.distance_metres is not None
        loss = 10 * self.channel.path_loss_exponent * math.log10(max(device.distance_metres, 1.0))
        return self.channel.reference_gain_db - loss
