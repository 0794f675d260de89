"""The model of a plan, from options and fleet file."""

from __future__ import annotations

import pytest

from taskedge.cli.plan_options import task_table, unusable_model, write_text
from taskedge.errors import InputError
from taskedge.planning.fleet_file import load_fleet


@pytest.mark.slow
def test_options_come_before_the_fleet_file(planning) -> None:
    loaded = load_fleet(planning / "fleet.toml")
    table, budget = task_table(loaded, planning, None, None, None, None)
    assert (len(table), table.model, table.sequence_tokens, budget) == (4, "tiny", 16, "1%")
    table, budget = task_table(loaded, planning, str(planning / "tiny"), "2%", 8, 2)
    assert (len(table), table.sequence_tokens, budget) == (2, 8, "2%")


def test_without_a_model(planning) -> None:
    loaded = load_fleet(planning / "fleet.toml").model_copy(update={"model": None})
    with pytest.raises(InputError, match="no model: give --model"):
        task_table(loaded, planning, None, None, None, None)


def test_a_text_file_is_written_whole(tmp_path) -> None:
    write_text(tmp_path / "plan.json", "{}\n")
    assert (tmp_path / "plan.json").read_text() == "{}\n"
    with pytest.raises(InputError):
        write_text(tmp_path / "none" / "plan.json", "{}")


def test_an_unusable_model_has_the_first_line_of_the_reason() -> None:
    assert str(unusable_model("m", ValueError("one\ntwo"))) == "model 'm' cannot be run here: one"
    assert str(unusable_model("m", ValueError())) == "model 'm' cannot be run here: ValueError"
