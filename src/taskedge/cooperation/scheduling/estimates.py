"""What the planner must know of the devices of a round: from the fleet file, from their profiles, or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from taskedge.backbone.cost_model import block_table, dummy_inputs
from taskedge.backbone.cost_table import BlockTable
from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.device_sessions import About
from taskedge.cooperation.protocol.quantization import bytes_per_value
from taskedge.cooperation.protocol.trained_blocks import TrainedBlocks
from taskedge.planning.fleet_costs import Costs, balanced_sizes, fleet_costs
from taskedge.planning.fleet_spec import Channel, Device, Fleet, Server
from taskedge.planning.link_models import Link
from taskedge.planning.plan import fleet_link

ASSUMED_FLOPS = 1e10
"""FLOP/s of a device without a profile, until its first task shows better."""
ASSUMED_BITS_PER_SECOND = 20e6
"""Of the link of a device that the fleet file does not name."""


@dataclass(frozen=True)
class Estimates:
    """The planner's arguments for some devices; row k is device ``names[k]``."""

    names: tuple[str, ...]
    costs: Costs
    link: Link
    bandwidth_hz: float
    accumulate: dict[str, int]
    """Batches per local step of each device."""
    tokens: dict[str, float]
    """Predicted tokens of each device in a round."""


def run_table(model: nn.Module, length: int, settings: CooperateSettings) -> BlockTable:
    """The block table of a model that takes token ids, for texts of ``length`` tokens; layers merged as set."""
    body = getattr(model, getattr(model, "base_model_prefix", "") or "-", model)
    table = block_table(body, dummy_inputs(body, 1, length), share=0.0, name=type(model).__name__)
    return merged(table, settings)


def merged(table: BlockTable, settings: CooperateSettings) -> BlockTable:
    """The table cut into as many blocks as the settings say, as even as possible."""
    if settings.blocks is None or settings.blocks == len(table):
        return table
    return table.merged(balanced_sizes(table.forward_flops + table.backward_flops, settings.blocks))


def with_payload(table: BlockTable, blocks: TrainedBlocks, sizes: Mapping[str, int]) -> BlockTable:
    """The table with the values that the blocks really train; ``sizes`` of every trained name."""
    counts = [sum(sizes[name] for name in blocks.names[block]) for block in range(1, len(blocks) + 1)]
    return replace(table, payload_values=np.array(counts, dtype=np.float64))


def estimate(
    abouts: Mapping[str, About], fleet: Fleet | None, table: BlockTable, settings: CooperateSettings
) -> Estimates:
    """Costs and links of the devices in ``abouts``; the fleet file, where it names a device, has the last word."""
    listed = {one.name: one for one in fleet.device} if fleet else {}
    per_batch = settings.batch_size * settings.local_steps * table.sequence_tokens
    rows, accumulate = [], {}
    for name, about in sorted(abouts.items()):
        stated = listed.get(name)
        accumulate[name] = max(1, round(stated.tokens_per_round / per_batch)) if stated else settings.accumulate
        rows.append(stated or _assumed(name, about, table, settings))
    channel = fleet.channel if fleet else Channel(bandwidth_hz=1e6)
    whole = Fleet(server=fleet.server if fleet else Server(), channel=channel, device=rows)
    for one, row in zip(whole.device, rows, strict=True):
        one._profile = row._profile  # private attributes do not survive the checks of the whole
    names = tuple(one.name for one in rows)
    return Estimates(
        names=names,
        costs=replace(fleet_costs(whole, table), bits=8 * bytes_per_value(settings.upload) * table.payload_values),
        link=fleet_link(whole),
        bandwidth_hz=channel.bandwidth_hz,
        accumulate=accumulate,
        tokens={name: float(per_batch * accumulate[name]) for name in names},
    )


def _assumed(name: str, about: About, table: BlockTable, settings: CooperateSettings) -> Device:
    """A device that no file describes: its profile if that is of this model, else a guess that is soon corrected."""
    profile, tokens = about.profile, float(settings.rows_per_round * table.sequence_tokens)
    fits = profile is not None and profile.model_digest == table.digest
    if profile is not None and fits and len(profile.step_seconds) == table.deepest_layer[-1]:
        device = Device(
            name=name,
            profile="as sent",
            memory_bytes=about.memory_bytes,
            tokens_per_round=max(tokens, float(profile.tokens_per_step)),
            wired_bits_per_second=ASSUMED_BITS_PER_SECOND,
        )
        device._profile = profile
        return device
    return Device(
        name=name,
        flops_per_second=ASSUMED_FLOPS,
        utilisation_ratio=1.0,
        memory_bytes=about.memory_bytes,
        tokens_per_round=tokens,
        batch_sequences=settings.batch_size,
        wired_bits_per_second=ASSUMED_BITS_PER_SECOND,
    )
