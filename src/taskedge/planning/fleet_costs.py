"""Seconds, bytes and bits of every device for every block, from a fleet and a block table. Solvers take these arrays.

With K devices, L blocks, and block b at depth b + 1:

- ``t_cmp[k, b] = n_k·(F_fwd + F_bwd(depth b)) / (f_k·u_k)`` seconds, or the device's own measured step;
- ``m[k, b] = M_base + M_act(depth b)·batch_k + M_opt(b)`` bytes, or the device's own measured peak;
- ``bits[b]``: the block's trained values on the wire.

Seconds and bytes rise with depth, because backpropagation must reach the block.

Source: the cost model of LoLa DEFT (arXiv 2407.09873).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskedge.backbone.cost_table import BlockTable
from taskedge.errors import InputError
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.planning.link_models import Bools, Floats

STATE_BYTES = 16.0
"""Bytes per trained value: the gradient and two Adam moments in fp32, and the position."""

RUNTIME_BYTES = 450e6
"""Bytes of a process with Python, torch and transformers and no model (measured on Linux x86, torch 2.13)."""

ALLOCATOR_FACTOR = 1.5
"""Resident bytes per byte that backpropagation keeps: temporaries and fragmentation (measured, MiniLM-L6, glibc)."""


@dataclass(frozen=True)
class FleetCosts:
    """Cost of each block on each device.

    Attributes:
        down: [K] seconds to receive the values of all blocks, which the forward pass of every device needs.
        compute: [K, L] seconds of training.
        memory: [K, L] bytes while the device trains this block alone.
        extra: [K, L] bytes that this block adds if the device also trains a deeper one.
        capacity: [K] bytes of the device.
        bits: [L] bits of the upload.
    """

    down: Floats
    compute: Floats
    memory: Floats
    extra: Floats
    capacity: Floats
    bits: Floats

    @property
    def fits(self) -> Bools:
        """[K, L] whether the device can hold the block."""
        return np.asarray(self.memory <= self.capacity[:, None])

    @property
    def memory_together(self) -> Floats:
        """[K, L] bytes while the device trains every block down to this one."""
        return np.asarray(self.memory + np.cumsum(self.extra, axis=1) - self.extra)

    @property
    def fits_together(self) -> Bools:
        """[K, L] whether the device can hold all blocks down to this one at once."""
        return np.asarray(self.memory_together <= self.capacity[:, None])

    def memory_of_blocks(self, device: int, blocks: Sequence[int]) -> float:
        """Return the bytes while ``device`` (row) trains ``blocks`` (columns) together."""
        deepest = max(blocks)
        return float(self.memory[device, deepest] + sum(self.extra[device, b] for b in blocks if b != deepest))

    @property
    def busy(self) -> Floats:
        """[K, L] seconds before the upload begins. Solvers take this as ``compute``."""
        return np.asarray(self.compute + self.down[:, None])


def fleet_costs(fleet: FleetSpec, table: BlockTable) -> FleetCosts:
    """Return the cost of every block on every device.

    Raises:
        InputError: profiles were measured on another model. The message names all of them.
    """
    _check_profiles(fleet, table)
    bits = table.payload_values * fleet.channel.bytes_per_value * 8
    reserved = np.array([[device.reserved_bytes] for device in fleet.device])
    rows = [_measured(fleet, index, table) or _modeled(fleet, index, table) for index in range(len(fleet.device))]
    return FleetCosts(
        down=np.full(len(rows), float(bits.sum()) / fleet.server.downlink_bits_per_second),
        compute=np.array([row[0] for row in rows]),
        memory=np.array([row[1] for row in rows]) + reserved,
        extra=np.array([row[2] for row in rows]),
        capacity=np.array([device.memory_bytes for device in fleet.device]),
        bits=bits,
    )


def _measured(fleet: FleetSpec, index: int, table: BlockTable) -> tuple[Floats, Floats, Floats] | None:
    """Return compute seconds, bytes and extra bytes [L] of a device with a profile, or None without one.

    A profiled step trains all blocks down to a depth. So a single block is slightly cheaper than measured, and further
    blocks need no extra bytes.
    """
    device = fleet.device[index]
    profile = device.measured
    if profile is None:
        return None
    deepest = table.deepest_layer - 1
    steps = device.tokens_per_round / profile.tokens_per_step
    seconds = np.array(profile.step_seconds)[deepest] * steps
    return seconds, np.array(profile.peak_bytes)[deepest], np.zeros(len(table))


def _modeled(fleet: FleetSpec, index: int, table: BlockTable) -> tuple[Floats, Floats, Floats]:
    """Return compute seconds, bytes and extra bytes [L] of a device with a given FLOP/s."""
    device = fleet.device[index]
    forward = table.forward_flops.sum() + table.other_forward_flops
    seconds = device.tokens_per_round * (forward + np.cumsum(table.backward_flops)) / device.flops
    tokens = device.batch_sequences * table.sequence_tokens
    return seconds, step_bytes(table, tokens), own_bytes(table, tokens)


def own_bytes(table: BlockTable, batch_tokens: float, checkpointing: bool = False) -> Floats:
    """Return [L] bytes that training a block adds to backpropagation through it: stored inputs and optimizer state."""
    inputs = np.zeros(len(table)) if checkpointing else table.input_bytes
    return np.asarray(ALLOCATOR_FACTOR * batch_tokens * inputs + STATE_BYTES * table.payload_values)


def step_bytes(table: BlockTable, batch_tokens: float, together: bool = False, checkpointing: bool = False) -> Floats:
    """Return [L] peak bytes of a training step by depth, never falling.

    The estimate is the process and the weights; per token of the batch, what the layers down to the block keep for the
    backward pass, the inputs of the trained linears, and the working set of the widest layer; and the optimizer state.
    It is conservative; a profile is closer.

    Args:
        table: blocks of the model.
        batch_tokens: tokens of one batch.
        together: train all blocks down to the depth, instead of only the block at the depth.
        checkpointing: layers keep only their input and run forward a second time.

    Source: this project, from counted tensors and two measured constants.
    """
    working = float(((table.activation_bytes + table.input_bytes) / table.layers_per_block).max())
    kept = np.cumsum(table.boundary_bytes if checkpointing else table.activation_bytes)
    own = own_bytes(table, batch_tokens, checkpointing)
    own = np.cumsum(own) if together else own
    through = RUNTIME_BYTES + table.base_bytes + ALLOCATOR_FACTOR * batch_tokens * (kept + working)
    return np.maximum.accumulate(through + own)


def _check_profiles(fleet: FleetSpec, table: BlockTable) -> None:
    """Raise InputError if a profile does not fit the model. The message names all of them."""
    faults = []
    for device in fleet.device:
        profile = device.measured
        if profile is None:
            continue
        if profile.model_digest != table.digest:
            faults.append(
                f"device {device.name!r}: {device.profile} was measured on {profile.model} (digest "
                f"{profile.model_digest}), not on {table.model} ({table.digest}); run `taskedge measure` with it"
            )
        elif len(profile.step_seconds) != table.deepest_layer[-1]:
            faults.append(
                f"device {device.name!r}: {device.profile} has {len(profile.step_seconds)} depths, "
                f"the model has {table.deepest_layer[-1]} layers"
            )
        elif device.tokens_per_round < profile.tokens_per_step:
            faults.append(
                f"device {device.name!r}: tokens_per_round = {device.tokens_per_round:g} is less than the "
                f"{profile.tokens_per_step} tokens of one step of {device.profile}"
            )
    if faults:
        count = f"{len(faults)} profile{'s' if len(faults) > 1 else ''}"
        raise InputError(f"{count} cannot be used for this plan:\n" + "\n".join(f"  {fault}" for fault in faults))


def balanced_sizes(weights: Floats, blocks: int) -> list[int]:
    """Cut consecutive layers into blocks whose largest weight is as small as possible.

    Args:
        weights: [layers] cost of each layer, not negative.
        blocks: number of blocks, 1 .. layers.

    Returns:
        The number of layers of each block. Among the cuts with the least maximum, it is the cut with the least sum of
        squares, so the other blocks are even as well.

    Raises:
        InputError: the model cannot be cut into that number of blocks.

    Source: this project. Dynamic programming in layers²·blocks steps.
    """
    layers = len(weights)
    if not 1 <= blocks <= layers:
        raise InputError(f"--blocks {blocks}: the model has {layers} layers, so give a number from 1 to {layers}")
    total = np.concatenate([[0.0], np.cumsum(weights)])
    segment = total[None, :] - total[:, None]  # (start, end) weight of layers start .. end-1
    largest = _best_cut(blocks, np.maximum, segment)[0]
    allowed = np.where(segment <= largest * (1 + 1e-12), segment**2, np.inf)
    return _best_cut(blocks, np.add, allowed)[1]


def _best_cut(blocks: int, join: np.ufunc, cost: Floats) -> tuple[float, list[int]]:
    """Return the least ``join`` of segment costs over all cuts into ``blocks`` segments, and the sizes of that cut."""
    layers = len(cost) - 1
    best = np.full((blocks + 1, layers + 1), np.inf)
    previous = np.zeros((blocks + 1, layers + 1), dtype=np.int64)
    best[0, 0] = 0.0
    for block in range(1, blocks + 1):
        for end in range(block, layers + 1):
            tried = join(best[block - 1, :end], cost[:end, end])
            previous[block, end] = int(np.argmin(tried))
            best[block, end] = tried[previous[block, end]]
    ends = [layers]
    for block in range(blocks, 0, -1):
        ends.append(int(previous[block, ends[-1]]))
    return float(best[blocks, layers]), [end - start for start, end in zip(ends[1:], ends, strict=False)][::-1]
