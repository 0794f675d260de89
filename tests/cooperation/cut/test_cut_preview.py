"""The plan of a run: its bytes are those that a step then moves."""

from __future__ import annotations

import cut_runs
import pytest

from taskedge.cooperation.cut.cut_local import both_ends
from taskedge.cooperation.cut.cut_preview import preview_over_cut
from taskedge.cooperation.cut.cut_settings import CutSettings


@pytest.mark.parametrize("changes", [{"max_columns": 4}, {"form": "lora", "rank": 2}], ids=["sparse", "lora"])
def test_a_step_moves_what_the_plan_states(tmp_path, changes):
    files = cut_runs.files(tmp_path, rows=8)  # one batch, so that the longest row is in it
    config, settings = files.config(**changes), CutSettings()
    with both_ends(config, settings, log=cut_runs.quiet) as ends:
        (plan,) = preview_over_cut(config, settings, ends.end, ends.store, log=cut_runs.quiet).values()
    assert not config.out.exists()
    done, recorded = files.run(**changes)
    assert done.result.steps == 1
    up = down = trips = 0
    begun = False
    for request, answer in recorded.messages:
        begun = begun or answer.kind == "pass"
        if begun and answer.kind != "done":
            trips += 1
            down += len(request.tensors.get("matrix", ()))
            up += len(answer.tensors.get("matrix", ())) + len(answer.tensors.get("inputs", ()))
    assert (plan.down_bytes, plan.up_bytes, plan.round_trips) == (down, up, trips)
    assert plan.step_bytes == 4 * done.result.counted.numbers
    assert plan.groups == 8
    blocks = 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert plan.cloud_flops == 2 * plan.tokens * 2 * blocks
