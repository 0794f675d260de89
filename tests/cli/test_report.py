"""``taskedge report``: one page that loads nothing, shows what the files say, and opens in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import tiny_task
from tiny_task import snapshot, tuning

from taskedge.delta.file import load, save

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</td><script>document.title='owned'</script>"


class Tags(HTMLParser):
    """Collects the tags of a page and its text."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def reported(taskedge, *arguments):
    ended = taskedge("report", *map(str, arguments))
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture(scope="module")
def logged(task, tmp_path_factory):
    """A folder with a task, the log of its run, and data half of which has the wrong labels."""
    folder = tmp_path_factory.mktemp("logged")
    arguments = ["--validation", "25%", "--eval-every", 2, "--keep", "best", "--log", folder / "run"]
    ended = tiny_task.forked(tuning(task, *arguments, "--out", folder / "task.safetensors"))
    assert ended.code == 0, ended.err
    other = {"pos": "neg", "neg": "pos"}
    rows = [(f"{text} {HOSTILE}", other[label]) for text, label in tiny_task.rows(40, seed=1)]
    tiny_task.table(folder / "held.csv", rows[:20] + tiny_task.rows(20, seed=2))
    return folder


def test_the_page_shows_the_run_and_loads_nothing(taskedge, logged, here):
    out = here / "page.html"
    reported(
        taskedge, logged / "task.safetensors", "--data", logged / "held.csv", "--log", logged / "run", "--out", out
    )
    made = out.read_text()
    page = Tags(made)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object")]
    assert not [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href") or k.startswith("on")]
    assert HOSTILE in page.text, "the text of the mistake is shown, and is text"
    run = json.loads((logged / "run" / "run.json").read_text())
    step = load(logged / "task.safetensors").provenance.training["kept_step"]
    for shown in (
        "held-out loss",
        f"kept: step {step}",
        f"{run['result']['steps']} steps",
        "Worst mistakes",
        "precision",
    ):
        assert shown in page.text
    assert out.stat().st_size <= 2_000_000


def test_no_examples_shows_no_text_of_the_data(taskedge, logged, here):
    delta, data = logged / "task.safetensors", logged / "held.csv"
    reported(taskedge, delta, "--data", data, "--no-examples", "--out", here / "p.html")
    made = (here / "p.html").read_text()
    assert "owned" not in made
    assert "Worst mistakes" not in made
    assert "precision" in made


def test_hostile_names_in_a_file(taskedge, logged, here):
    delta = load(logged / "task.safetensors")
    save(
        delta.with_provenance(task=HOSTILE, labels=(HOSTILE, "b"), base=HOSTILE, training={HOSTILE: HOSTILE}),
        here / "h",
    )
    reported(taskedge, here / "h", "--out", here / "h.html")
    page = Tags((here / "h.html").read_text())
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.text.count(HOSTILE) >= 4


def test_several_are_compared(taskedge, logged, tuned, here):
    reported(taskedge, logged / "task.safetensors", tuned[0], "--data", logged / "held.csv", "--out", here / "c.html")
    text = Tags((here / "c.html").read_text()).text
    assert "2 runs compared" in text
    assert '"best"' in text, "a setting that differs"
    assert "accuracy" in text
    assert HOSTILE not in text


def test_rounds_and_a_plan(taskedge, tuned, here):
    (here / "fleet").mkdir()
    figures = {"devices": 3, "accepted": 2, "upload_bytes": 1000, "seconds": 2.5, "predicted_seconds": 2.0}
    rounds = [{"event": "round", "round": number, "loss": 1.0 / number, **figures} for number in (1, 2, 2)]
    done = {"bytes_down": 3_000_000, "bytes_up": 1_000_000, "predicted_seconds": 1.0, "observed_seconds": 2.0}
    tasks = [{"event": "task", "device": HOSTILE, "result": result, **done} for result in ("accepted", "late")]
    lines = [json.dumps(one) for one in [{"event": "joined", "device": "a"}, *rounds, *tasks]]
    (here / "fleet" / "log.jsonl").write_text("\n".join(lines) + '\n{"event": "ro')
    reported(taskedge, tuned[0], "--log", here / "fleet", "--out", here / "f.html")
    text = Tags((here / "f.html").read_text()).text
    assert "2 rounds, uploads of " in text
    assert "2.50 s" in text
    assert f"{HOSTILE}216,000,0002,000,0002.0 s4.0 s" in text, "two tasks, one accepted, and sums"
    assert "no --log" not in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["DELTA", "--log", "none"], "none: no log of a run"),
        (["DELTA", "DELTA", "--log", "none"], "1 --log for 2 deltas: give one for each"),
        (["DELTA", "--out", "DELTA"], "which this command reads"),
        (["nothere"], "nothere: cannot be read"),
    ],
)
def test_mistakes(taskedge, tuned, here, arguments, told):
    before = snapshot(here)
    ended = taskedge("report", *(a.replace("DELTA", str(tuned[0])) for a in arguments))
    assert ended.code == 2
    assert told in ended.err
    assert snapshot(here) == before


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser on this machine")
def test_it_opens_in_a_browser_without_errors(taskedge, logged, here):
    reported(
        taskedge, logged / "task.safetensors", "--data", logged / "held.csv", "--log", logged / "run",
        "--out", here / "p.html",
    )  # fmt: skip
    call = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={here}/u",
    ]
    ended = subprocess.run(
        [*call, "--dump-dom", (here / "p.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "<title>task.safetensors</title>" in ended.stdout
    assert ended.stdout.count("<svg") >= 4
    assert not re.findall(r"CONSOLE.*", ended.stderr)
