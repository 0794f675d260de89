"""Pictures of supports: what the figures hold, and their limits."""

from __future__ import annotations

import math

import pytest

from taskedge.errors import InputError, TaskEdgeError
from taskedge.reporting import support_pictures
from taskedge.reporting.support_pictures import MAX_SUPPORTS, draw_supports

pytest.importorskip("matplotlib")


def support(name, share):
    table = {f"bert.encoder.layer.{block}": {"query": share, "output.dense": share / 2} for block in range(3)}
    return {"name": name, "entries": 1234, "share_by_block": table}


def values(*names):
    overlaps = [
        {
            "first": one, "second": other, "shared": 5, "share": 0.25, "by_chance": 0.002,
            "by_block": {"bert.encoder.layer.0": {"query": 0.5}},
        }
        for index, one in enumerate(names)
        for other in names[index + 1 :]
    ]  # fmt: skip
    return {"supports": [support(name, 0.01) for name in names], "overlaps": overlaps}


@pytest.fixture
def figure_of(monkeypatch, tmp_path):
    """Return the axes of a figure that would be written."""
    drawn = []

    def keep(plt, figure, path):
        figure.canvas.draw()
        drawn.append(figure.axes)
        plt.close(figure)

    def draw(given):
        monkeypatch.setattr(support_pictures, "save_picture", keep)
        draw_supports(given, tmp_path / "picture.png")
        return drawn[-1]

    return draw


def test_one_support_is_one_table_of_shares(figure_of):
    panels = [axes for axes in figure_of(values("spam")) if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["spam\n1,234 entries"]
    shares = panels[0].images[0].get_array()
    assert shares.shape == (3, 2)
    assert shares[1, 0] == 0.01
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["layer.0", "layer.1", "layer.2"]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["query", "output.dense"]
    assert "1%" in {text.get_text() for text in panels[0].texts}


def test_two_supports_have_their_overlap_below(figure_of):
    panels = {axes.get_title(loc="left"): axes for axes in figure_of(values("spam", "topics"))}
    pairs = panels["shared entries, of the smaller one"]
    assert [text.get_text() for text in pairs.texts] == ["25%\n(chance 0.2%)"]
    shared = panels["shared by spam and topics"].images[0].get_array()
    assert shared[0, 0] == 0.5
    assert math.isnan(shared.data[1, 0])


def test_more_supports_than_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match=f"give up to {MAX_SUPPORTS}"):
        draw_supports(values(*"abcdefg"), tmp_path / "picture.png")


def test_a_file_is_written_and_another_format_is_refused(tmp_path):
    draw_supports(values("spam"), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TaskEdgeError, match=r"cannot draw .*\.xyz"):
        draw_supports(values("spam"), tmp_path / "picture.xyz")
