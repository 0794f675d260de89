"""Clipping and noise on what leaves the device, and the (ε, δ) that follows.

Two kinds of messages tell of the data: the embedded tokens of a row (``inputs``) and the gradient of its last hidden
states (``gradient``). All the other messages are functions of these two and of what the cloud has sent, so they reveal
nothing more and get no noise: the values that train follow from inputs and gradients that crossed. This holds if
the norm of the head's gradient does not scale their steps, no step depends on held-out data, and classes are not
weighted by their number in the data (:func:`noise_clash`).

The guarantee is for one row, replaced by any other of the same padded length. Each row's block of a message is clipped
to a norm, and noise is added to each of its numbers. The head trains on the device, without noise, on all rows, and
every later gradient depends on it: so each training pass counts, with the change of all its rows. Masks, the number of
rows, and times are not protected, nor are the low bits of float32 noise.

Source: the Gaussian mechanism and its accounts, as for rounds (:mod:`taskedge.cooperation.device.privacy_account`);
this project for which messages need noise.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.cooperation.device.privacy_account import spent_epsilon
from taskedge.errors import InputError

PROTECTED = ("inputs", "gradient")
"""Kinds of messages that tell of the data."""


@dataclass(frozen=True)
class NoiseSettings:
    """Clips of messages that tell of the data, and the noise on them.

    Attributes:
        clip_inputs: Largest l2 norm of the embedded tokens of a row, [length, width] as one vector.
        clip_gradient: The same of the gradient of a row's last hidden states.
        noise: Standard deviation of the noise on each number, as a multiple of the clip; 0: only clip.
        delta: Probability with which the ε may be exceeded.

    Raises:
        InputError: A number is outside its range.
    """

    clip_inputs: float
    clip_gradient: float
    noise: float = 0.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        for name, value in (("inputs", self.clip_inputs), ("the gradient", self.clip_gradient)):
            if not 0 < value < math.inf:
                raise InputError(f"a largest norm of {name} of {value:g}: it must be above 0 and finite")
        if not 0 <= self.noise < math.inf:
            raise InputError(f"noise of {self.noise:g}: it must be 0 or above, and finite")
        if not 0 < self.delta < 1:
            raise InputError(f"a δ of {self.delta:g}: it must be between 0 and 1")


@dataclass(frozen=True)
class Exposure:
    """How often rows cross.

    Attributes:
        passes_with_row: Passes that one row is in at most: epochs, calibration, and passes that were run again.
        training_passes: All passes with a gradient.
        rows_in_pass: Rows of a training pass at most.
    """

    passes_with_row: int
    training_passes: int
    rows_in_pass: int


def noise_clash(*, clip: float, class_weights: str | None, watches_held_out: bool) -> str:
    """Return why settings of a run void the guarantee; ``""`` if none does.

    Args:
        clip: Largest norm of the gradient of all that trains; 0: none.
        class_weights: How classes are weighted; None: not.
        watches_held_out: Whether held-out data decide when training stops or which values are kept.
    """
    if clip:
        return f"--clip {clip:g} scales the steps by the head's gradient, which has no noise: give --clip 0"
    if class_weights is not None:
        return f"--class-weights {class_weights} depends on all labels, without noise: leave it out"
    if watches_held_out:
        return "held-out data decide when training stops, without noise: leave out --early-stop and --keep"
    return ""


class OutgoingNoise:
    """Clips rows of a message to a norm, and adds noise.

    Args:
        settings: What is done.
        seed: Of the noise; None: from the operating system. For tests: a known seed protects nothing.

    Attributes:
        clipped: Rows that were longer than the clip, by kind.
        rows: All rows, by kind.
    """

    def __init__(self, settings: NoiseSettings, seed: int | None = None) -> None:
        self.settings = settings
        self._random = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)
        self.clipped: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()

    def protect(self, kind: str, matrix: Tensor, rows: int) -> Tensor:
        """Return what leaves in place of a matrix, float32 [tokens, k].

        Args:
            kind: Of the message. Kinds that tell nothing more come back as they are.
            matrix: [tokens, k], with the tokens of one row after those of another.
            rows: Number of rows; each has as many tokens.

        Raises:
            InputError: The tokens are no whole rows.
        """
        if kind not in PROTECTED:
            return matrix
        if rows < 1 or len(matrix) % rows:
            raise InputError(f"{len(matrix)} tokens of {rows} rows: every row needs as many")
        clip = self.settings.clip_inputs if kind == "inputs" else self.settings.clip_gradient
        blocks = matrix.float().reshape(rows, -1)
        norms = blocks.double().norm(dim=1)
        self.rows[kind] += rows
        self.clipped[kind] += int((norms > clip).sum())
        # a hair less, so that float32 does not round a norm above the clip
        factors = torch.where(norms > clip, clip * (1 - 1e-6) / norms.clamp_min(1e-300), 1.0).float()
        blocks = blocks * factors[:, None]
        if self.settings.noise:
            deviation = self.settings.noise * clip
            blocks = blocks + deviation * torch.randn(blocks.shape, generator=self._random)
        return blocks.reshape(matrix.shape)

    def spent(self, exposure: Exposure) -> str:
        """Return the ε that follows, and how many rows were clipped, as text."""
        shares = ", ".join(f"{self.clipped[kind]:,} of {self.rows[kind]:,} {kind}" for kind in PROTECTED)
        return f"clipped {shares}; {self.follows(exposure)}"

    def follows(self, exposure: Exposure) -> str:
        """Return the ε that follows, as text.

        Raises:
            InputError: See :func:`epsilon_of`.
        """
        epsilon = epsilon_of(self.settings, exposure)
        if math.isinf(epsilon):
            return "without noise no ε follows"
        return (
            f"ε = {epsilon:.4g} at δ = {self.settings.delta:g} for each row, from "
            f"{exposure.passes_with_row:,} passes with the row and {exposure.training_passes:,} gradients of "
            f"{exposure.rows_in_pass:,} rows"
        )


def epsilon_of(settings: NoiseSettings, exposure: Exposure) -> float:
    """Return the ε at the settings' δ of what crossed; infinite without noise.

    Replacing a row moves its block of the inputs by at most twice the clip, in the passes that it is in. It moves the
    head, and with it the gradient of every row of every pass: by twice the clip times the root of the rows.

    Raises:
        InputError: Opacus is not installed, or no accountant gives an ε.
    """
    if not settings.noise:
        return math.inf
    inputs = (settings.noise / 2, 1.0, exposure.passes_with_row)
    gradients = (settings.noise / (2 * math.sqrt(exposure.rows_in_pass)), 1.0, exposure.training_passes)
    releases = tuple(release for release in (inputs, gradients) if release[2])
    return spent_epsilon(releases, settings.delta)
