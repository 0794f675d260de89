"""The plan of a run over the cut before its first step: from the modules that the cloud has chosen, in closed form."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskedge.cooperation.cut.base_parts import PartsStore
from taskedge.cooperation.cut.cut_plan import PlanGroup, StepPlan, plan_step
from taskedge.cooperation.cut.cut_run import Prepared, prepare_over_cut
from taskedge.cooperation.cut.cut_settings import CutSettings, check_for_cut
from taskedge.cooperation.cut.device_end import DeviceEnd
from taskedge.cooperation.cut.module_groups import Group, groups_of
from taskedge.training.tasks import Log
from taskedge.training.tune_config import TuneConfig

_BLOCK = re.compile(r"\.(\d+)\.")


def preview_over_cut(
    config: TuneConfig,
    settings: CutSettings,
    end: DeviceEnd,
    store: PartsStore,
    *,
    log: Log = print,
) -> dict[str, StepPlan]:
    """Join the cloud, have it choose the modules, and return what a step will cost; nothing is trained or written.

    Args:
        config, settings, end, store, log: see :func:`taskedge.cooperation.cut.cut_run.train_over_cut`.

    Returns:
        The plan of a step with all modules; with an active share, of one with that share as well, evenly spread.
    """
    check_for_cut(config, settings)
    with tempfile.TemporaryDirectory(prefix="taskedge-cut-") as scratch:
        prepared = prepare_over_cut(config, settings, end, store, Path(scratch) / "run", resume=False, log=log)
    assert end.modules is not None
    names = list(end.modules.plan)
    plans = {"all modules": _plan(prepared, settings, end, names)}
    if settings.active_share < 1:
        spread = names[:: max(1, round(1 / settings.active_share))]
        plans[f"{len(spread)} of {len(names)} modules"] = _plan(prepared, settings, end, spread)
    end.done()
    return plans


def _plan(prepared: Prepared, settings: CutSettings, end: DeviceEnd, active: Sequence[str]) -> StepPlan:
    run, hollow, facts = prepared.run, prepared.hollow, end.facts
    assert end.modules is not None
    assert facts is not None
    support = prepared.chosen.support
    entries = {hollow.cloud_name(name): len(linear) for name, linear in support.linears.items()}
    ranks = {hollow.cloud_name(name): rank for name, rank in support.low_rank.items()}
    in_blocks = [0] * facts.layers
    own = 0
    for name, parameter in hollow.model.named_parameters():
        cloud_name = hollow.cloud_name(name)
        if not cloud_name.startswith(f"{facts.stack}."):
            own += parameter.numel()
        elif parameter.dim() == 2 and name.endswith(".weight"):
            in_blocks[_block(cloud_name)] += parameter.numel()
    length = max(len(row["input_ids"]) for row in run.rows)
    return plan_step(
        [_group(group, entries, ranks) for group in groups_of(end.modules.plan, active)],
        run.config.trainer_config().rows_per_pass * length,
        facts.width,
        settings.coding,
        own_parameters=own - run.num_full_parameters,
        head_parameters=run.num_full_parameters,
        block_parameters=in_blocks,
    )


def _group(group: Group, entries: Mapping[str, int], ranks: Mapping[str, int]) -> PlanGroup:
    return PlanGroup(
        name=group.name,
        columns=group.num_columns,
        rows=tuple(group.row_counts),
        inputs=group.modules[0].shape[1],
        outputs=tuple(module.shape[0] for module in group.modules),
        rank=ranks.get(group.name),
        block=_block(group.name),
        entries=sum(entries.get(module.name, 0) for module in group.modules),
    )


def _block(name: str) -> int:
    found = _BLOCK.search(f".{name}.")
    return int(found[1]) if found else 0
