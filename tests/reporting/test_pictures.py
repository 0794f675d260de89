from __future__ import annotations

import sys

import pytest
from example_results import PLAN, ROUNDS

from taskedge.errors import TaskEdgeError
from taskedge.reporting.pictures import draw_plan, draw_simulation


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "figures"), [(draw_plan, PLAN), (draw_simulation, ROUNDS)])
def test_a_picture_is_whole_and_always_the_same(tmp_path, draw, figures) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    draw(figures, first)
    draw(figures, second)
    assert first.read_text().rstrip().endswith("</svg>")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_no_matplotlib(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(TaskEdgeError, match=r"pip install 'taskedge\[plot\]'"):
        draw_plan(PLAN, tmp_path / "a.svg")


def test_an_unknown_kind_of_picture(tmp_path) -> None:
    with pytest.raises(TaskEdgeError, match=r"ends in .svg"):
        draw_plan(PLAN, tmp_path / "a.docx")
    assert not list(tmp_path.iterdir())
