"""The demo on a tiny model and a few made reviews: three lines that are true, nothing left that is not named."""

from __future__ import annotations

import tiny_task

from taskedge.cli.demo import write_page
from taskedge.delta.file import load
from taskedge.demo import assets
from taskedge.demo import demo_run as demo


def test_three_lines(tmp_path, monkeypatch):
    base = tiny_task.bert(tmp_path / "base")
    reviews = tiny_task.table(tmp_path / "reviews.csv", tiny_task.rows(400))
    monkeypatch.setattr(assets, "minilm", lambda say: base)
    monkeypatch.setattr(assets, "movie_reviews", lambda say: reviews)
    monkeypatch.setattr(demo, "TEST", 100)
    said: list[str] = []
    done = demo.run(tmp_path / "out", train_rows=150, epochs=1, progress=False, log=said.append)
    lines = done.lines
    assert [line.what for line in lines] == ["untrained head", "head only", "0.1 % tuned"]
    assert all(0 <= line.accuracy <= 1 for line in lines)
    assert [line.entries for line in lines] == [0, 0, round(0.001 * 6194)]
    assert lines[2].head == lines[1].head == 34
    written = tmp_path / "out" / "movie-reviews.safetensors"
    assert lines[2].file_bytes == written.stat().st_size
    assert load(written).num_entries == lines[2].entries
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.csv", "test.csv", written.name, "run"}
    assert done.delta == written
    assert done.examined["measures"]["accuracy"] == lines[2].accuracy
    assert [one["rows"] for one in done.examined["figures"]["classes"]] == [50, 50]
    assert len(done.examined["mistakes"]) <= 20
    assert (done.log / "run.json").is_file()
    assert "measuring the written file on a freshly loaded base" in said

    heads, *shown = demo.table(lines).splitlines()
    assert heads.split() == ["accuracy", "entries", "share", "head", "seconds", "peak", "MB", "file", "bytes"]
    assert len({len(line) for line in (heads, *shown)}) == 1
    assert "head only" in shown[1]

    page = write_page(done).read_text()
    assert all(word in page for word in ("movie-reviews.safetensors", "Worst mistakes", "training loss", "<svg"))
    assert 'src="http' not in page
