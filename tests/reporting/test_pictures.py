from __future__ import annotations

import sys

import pytest
from example_results import PLAN, ROUNDS

from taskedge.errors import TaskEdgeError
from taskedge.reporting.pictures import draw_placement, draw_plan, draw_simulation


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


@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_legend_of_a_plan_is_within_the_picture(tmp_path, monkeypatch, count) -> None:
    from taskedge.reporting import pictures

    drawn = []
    monkeypatch.setattr(pictures, "save_picture", lambda plt, figure, path: drawn.append((plt, figure)))
    parts = [PLAN["parts"][0] | {"device": f"device-{k}"} for k in range(count)]
    draw_plan(PLAN | {"parts": parts}, tmp_path / "a.svg")
    [(plt, figure)] = drawn
    figure.canvas.draw()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    assert [figure.bbox.count_contains(legend.get_window_extent().corners()) for legend in legends] == [4]
    plt.close(figure)


@pytest.mark.slow
@pytest.mark.parametrize("faults", [False, True])
def test_a_placement_is_drawn_within_its_picture(tmp_path, faults) -> None:
    from chips import chip, memory

    from taskedge.placement.placement_plan import make_plan
    from taskedge.placement.stored_tensors import BaseTensor, TaskSize

    device = chip(memory("sram", 4000), memory("reram", 40_000))
    plan = make_plan("toy", device, [BaseTensor("w", 10_000, True, 10_000)], None, [TaskSize("t", 100, 10)])
    if faults:
        measured = [{"setting": "0.1", "measures": [{"accuracy": 0.5}, {"accuracy": 0.7}]}]
        plan["faults"] = {"measure": "accuracy", "without_storage": 0.9, "rows": measured}
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    draw_placement(plan, first)
    draw_placement(plan, second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text().rstrip().endswith("</svg>")
