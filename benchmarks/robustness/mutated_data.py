"""What happens to data files that were changed, and whether the commands print what they understood.

    python -m benchmarks.robustness.mutated_data  # some minutes on one idle core

Each of 500 seeds writes one data file, changed in its rows, its form, or both, and gives it to ``tune`` (a tiny BERT or
a tiny Llama, three steps), ``eval`` and ``predict`` in this process. A command ends well, with a message (exit code 2
or 3), or with a traceback. If it ends well, it must have printed the file's format and the number of rows, with the
number of classes where there are any. A message must name the file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import transformers

from benchmarks.record import TEST_HELPERS, figure, show, write
from benchmarks.robustness.data_mutations import FORMS, ROW_CHANGES, Rows
from taskedge.cli.main import main as run_command

sys.path.append(str(TEST_HELPERS))
import tiny_task

RESULTS = ("mutated_data.json",)
NUM_SEEDS = 500
KINDS = {"bert": ("text", "label"), "llama": ("prompt", "response")}
QUICK = ("--epochs", "0.4", "--calibration", "1", "--batch-size", "4", "--budget", "2%", "--threads", "1")


def command(*arguments: str) -> tuple[str, str]:
    """Run the command line here; return ``"ok"``, ``"refused"`` or ``"traceback"``, and its messages."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command([*arguments])
    except BaseException:
        return "traceback", traceback.format_exc()
    return {0: "ok", 2: "refused", 3: "refused"}.get(code, "traceback"), err.getvalue()


def rows_of(kind: str, rng: random.Random) -> Rows:
    """Return 24 plain rows."""
    pairs = tiny_task.rows(24, rng.randrange(2**16)) if kind == "bert" else tiny_task.dialogs(24, rng.randrange(2**16))
    return [dict(zip(KINDS[kind], pair, strict=True)) for pair in pairs]


def unsaid(messages: str, path: Path) -> str:
    """Return what a successful command did not print of its data; empty if it printed all."""
    line = next((line for line in messages.splitlines() if line.startswith(f"{path}: ") and "; columns " in line), "")
    found = re.search(r"; ([\d,]+) rows?; columns '", line)
    if not found:
        return "the format"
    if not re.search(rf"^{found[1]} rows?(, \d[\d,]* classes: '.*)?$", messages, re.MULTILINE):
        return "rows and classes"
    return ""


def run_one(seed: int, folder: Path, bases: Path, deltas: dict[str, Path]) -> dict[str, Any]:
    """Write one changed file and return what became of it."""
    rng = random.Random(seed)
    form = rng.choice(FORMS)
    kind = "llama" if form.__name__ == "as_chats" else rng.choice(list(KINDS))
    answer = KINDS[kind][1]
    rows = rows_of(kind, rng)
    changes = []
    if rng.random() < 0.6:
        changes.append(rng.choice(ROW_CHANGES)(rows, answer, rng))
    if not rows and form.__name__ in ("as_json", "as_chats"):
        rows = rows_of(kind, rng)
    suffix, content, what = form(rows, answer, rng)
    data, out = folder / f"rows.{suffix}", folder / "out.safetensors"
    data.write_bytes(content)
    record: dict[str, Any] = {"seed": seed, "base": kind, "form": what, "changes": changes}
    strict = ["--strict"] if rng.random() < 0.1 else []
    tune = ["tune", "--model", str(bases / kind), "--train", str(data), "--out", str(out), *QUICK, *strict]
    outcome, messages = command(*tune, *(["--eval", str(data)] if rng.random() < 0.3 else []))
    _note(record, "tune", outcome, messages, data)
    # a file that cannot be trained on goes to a delta of plain rows
    delta = out if outcome == "ok" else deltas[kind]
    for verb in ("eval", "predict"):
        outcome, messages = command(verb, str(delta), "--data", str(data))
        _note(record, verb, outcome, messages, data)
    return record


def _note(record: dict[str, Any], verb: str, outcome: str, messages: str, data: Path) -> None:
    record[verb] = outcome
    if outcome == "ok" and (missing := unsaid(messages, data)):
        record.setdefault("unsaid", {})[verb] = missing
    if outcome != "ok":
        last = messages.strip().splitlines()[-1] if messages.strip() else "no message"
        record.setdefault("messages", {})[verb] = messages[-3000:] if outcome == "traceback" else last[:400]
        if outcome == "refused" and data.name not in messages:
            record.setdefault("unnamed", {})[verb] = last[:400]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=NUM_SEEDS)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    bases = Path(tempfile.mkdtemp())
    records, deltas = [], {}
    with contextlib.redirect_stderr(io.StringIO()):
        tiny_task.bert(bases / "bert")
        tiny_task.llama(bases / "llama", chat=True)
    for kind, names in KINDS.items():
        pairs = tiny_task.rows(24) if kind == "bert" else tiny_task.dialogs(24)
        data = tiny_task.table(bases / f"{kind}.csv", pairs, names)
        deltas[kind] = bases / f"{kind}.safetensors"
        outcome, messages = command(
            "tune", "--model", str(bases / kind), "--train", str(data), "--out", str(deltas[kind]), *QUICK
        )
        assert outcome == "ok", messages
    for seed in range(options.first, options.first + options.count):
        folder = Path(tempfile.mkdtemp())
        try:
            records.append(run_one(seed, folder, bases, deltas))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        found = records[-1]
        print(*(found.get(key, "") for key in ("seed", "form", "changes", "tune", "eval", "predict")), flush=True)
        for key in ("unsaid", "unnamed", "messages"):
            if found.get(key):
                print("   ", key, json.dumps(found[key])[-1800:].replace("\\n", "\n    "), flush=True)
    shutil.rmtree(bases, ignore_errors=True)
    verbs = ("tune", "eval", "predict")
    outcomes = Counter(record[verb] for record in records for verb in verbs)
    figures = [
        figure("commands that end in a traceback", [outcomes["traceback"]], bar=0),
        figure(
            "commands that end well without what was understood",
            [sum(len(r.get("unsaid", ())) for r in records)],
            bar=0,
        ),
        figure("refusals that do not name the file", [sum(len(r.get("unnamed", ())) for r in records)], bar=0),
        figure("commands that end well", [outcomes["ok"]]),
        figure("commands that end with a message", [outcomes["refused"]]),
        figure("files that could be trained on", [sum(record["tune"] == "ok" for record in records)]),
    ]
    show(figures)
    if options.count < NUM_SEEDS or options.first:
        return
    by_form = Counter((record["form"].split()[0].rstrip(","), record["tune"]) for record in records)
    result = {
        "setting": f"{NUM_SEEDS} seeds, a changed data file each, through tune, eval and predict; tiny bases",
        "figures": figures,
        "tune by form": {f"{form}, {outcome}": count for (form, outcome), count in sorted(by_form.items())},
        "failed": [r for r in records if "traceback" in (r[v] for v in verbs) or r.get("unsaid") or r.get("unnamed")],
    }
    print(write("robustness", "mutated_data", result))


if __name__ == "__main__":
    main()
