"""Costs and links of the devices of a round: from the fleet file, from their profiles, or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from taskedge.backbone.cost_model import block_table, dummy_inputs
from taskedge.backbone.cost_table import BlockTable
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.protocol.device_info import DeviceInfo
from taskedge.cooperation.protocol.quantization import bytes_per_value
from taskedge.cooperation.scheduling.trained_blocks import TrainedBlocks
from taskedge.planning.fleet_costs import FleetCosts, balanced_sizes, fleet_costs
from taskedge.planning.fleet_spec import ChannelSpec, DeviceSpec, FleetSpec, ServerSpec
from taskedge.planning.link_models import Link
from taskedge.planning.plan import fleet_link

ASSUMED_FLOPS = 1e10
"""FLOP/s of a device without a profile, until its first task corrects it."""
ASSUMED_BITS_PER_SECOND = 20e6
"""Uplink of a device that is not in the fleet file [bit/s]."""
ASSUMED_BANDWIDTH_HZ = 1e6
"""Of all uplinks together, without a fleet file [Hz]."""


@dataclass(frozen=True)
class Estimates:
    """The planner's arguments for some devices; row k is device ``names[k]``."""

    names: tuple[str, ...]
    costs: FleetCosts
    link: Link
    bandwidth_hz: float
    accumulate: dict[str, int]
    """Batches per local step, by device."""
    tokens: dict[str, float]
    """Predicted tokens in a round, by device."""


def text_block_table(model: nn.Module, length: int, config: CooperationConfig) -> BlockTable:
    """Return the block table of a model that takes token ids, for texts of ``length`` tokens, merged as configured."""
    body = getattr(model, getattr(model, "base_model_prefix", "") or "-", model)
    table = block_table(body, dummy_inputs(body, 1, length), share=0.0, name=type(model).__name__)
    return merge_layers(table, config)


def merge_layers(table: BlockTable, config: CooperationConfig) -> BlockTable:
    """Return the table with its layers merged into the configured number of blocks, as evenly as possible."""
    if config.blocks is None or config.blocks == len(table):
        return table
    return table.merged(balanced_sizes(table.forward_flops + table.backward_flops, config.blocks))


def with_trained_values(table: BlockTable, blocks: TrainedBlocks, sizes: Mapping[str, int]) -> BlockTable:
    """Return the table with the number of values that each block trains; ``sizes`` has that of every trained name."""
    counts = [sum(sizes[name] for name in blocks.names[block]) for block in range(1, len(blocks) + 1)]
    return replace(table, payload_values=np.array(counts, dtype=np.float64))


def estimate_costs(
    devices: Mapping[str, DeviceInfo], fleet: FleetSpec | None, table: BlockTable, config: CooperationConfig
) -> Estimates:
    """Return costs and links of ``devices``. For a device that the fleet file lists, the fleet file decides."""
    listed = {spec.name: spec for spec in fleet.device} if fleet else {}
    tokens_per_batch = config.batch_size * config.local_steps * table.sequence_tokens
    specs, accumulate = [], {}
    for name, info in sorted(devices.items()):
        spec = listed.get(name)
        if spec is None:
            specs.append(_assumed_spec(name, info, table, config))
            accumulate[name] = config.accumulate
        else:
            specs.append(spec)
            accumulate[name] = max(1, round(spec.tokens_per_round / tokens_per_batch))
    channel = fleet.channel if fleet else ChannelSpec(bandwidth_hz=ASSUMED_BANDWIDTH_HZ)
    round_fleet = FleetSpec(server=fleet.server if fleet else ServerSpec(), channel=channel, device=specs)
    for copied, spec in zip(round_fleet.device, specs, strict=True):
        copied._profile = spec._profile  # private attributes do not survive the validation of a fleet
    return Estimates(
        names=tuple(spec.name for spec in specs),
        costs=replace(fleet_costs(round_fleet, table), bits=8 * bytes_per_value(config.upload) * table.payload_values),
        link=fleet_link(round_fleet),
        bandwidth_hz=channel.bandwidth_hz,
        accumulate=accumulate,
        tokens={spec.name: float(tokens_per_batch * accumulate[spec.name]) for spec in specs},
    )


def _assumed_spec(name: str, info: DeviceInfo, table: BlockTable, config: CooperationConfig) -> DeviceSpec:
    """Describe a device that no file describes: by its profile if that is of this model, else by assumed figures."""
    profile, tokens = info.profile, float(config.rows_per_round * table.sequence_tokens)
    of_this_model = profile is not None and profile.model_digest == table.digest
    if profile is not None and of_this_model and len(profile.step_seconds) == table.deepest_layer[-1]:
        spec = DeviceSpec(
            name=name,
            profile="as sent",
            memory_bytes=info.memory_bytes,
            tokens_per_round=max(tokens, float(profile.tokens_per_step)),
            wired_bits_per_second=ASSUMED_BITS_PER_SECOND,
        )
        spec._profile = profile
        return spec
    return DeviceSpec(
        name=name,
        flops_per_second=ASSUMED_FLOPS,
        utilisation_ratio=1.0,
        memory_bytes=info.memory_bytes,
        tokens_per_round=tokens,
        batch_sequences=config.batch_size,
        wired_bits_per_second=ASSUMED_BITS_PER_SECOND,
    )
