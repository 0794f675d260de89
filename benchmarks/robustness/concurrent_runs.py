"""What becomes of two processes that write one output at the same time, when some of them are killed.

    nice -n 19 python -m benchmarks.robustness.concurrent_runs  # some minutes on one idle core

Each of 50 seeds starts a pair of processes on one ``--out`` at random moments, and kills some of them at random moments
with SIGKILL: ``tune`` with ``tune``, with ``tune --resume`` and with ``tune --replace``, ``predict`` with ``predict``,
``merge`` with ``merge``. The two have different settings wherever they may, so that the result shows whose it is. Then:

* no process ends with exit code 1;
* after an exit code 0, the output is that of a process that ended well, or of one that might replace it, to the byte;
* of two that end well, the later one was allowed to replace the result of the earlier one;
* if none ended well, resuming or starting again gives the result of an undisturbed run, to the byte.

Pairs that are done are kept in a file of the temporary folder, so that the benchmark continues after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.record import TEST_HELPERS, figure, show, write
from taskedge.cli.main import main as run_command

sys.path.append(str(TEST_HELPERS))
import tiny_task

RESULTS = ("concurrent_runs.json",)
NUM_PAIRS = 50
PAIRS = ("tune/tune", "tune/resume", "tune/replace", "predict/predict", "merge/merge")
LIMIT_SECONDS = 180
DONE = Path(tempfile.gettempdir()) / "taskedge-concurrent-runs.jsonl"


@dataclass
class Process:
    """A command in a process of its own.

    Attributes:
        arguments: of the command line.
        name: of the process, for the record.
        replaces: whether it may replace an existing output.
        code: exit code, or the negative number of a signal.
    """

    arguments: list[str]
    name: str
    replaces: bool = False
    log: Path = field(default=Path())
    pid: int = 0
    code: int | None = None
    ended: float = 0.0

    def start(self, log: Path) -> None:
        """Start the process: a fork, since a new interpreter takes seconds to import torch."""
        self.log = log
        log.touch()  # a kill may come before the process opens it
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                code = run_command(self.arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> bool:
        """Return whether the process has ended."""
        if self.code is None and self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code, self.ended = os.waitstatus_to_exitcode(status), time.monotonic()
        return self.code is not None


def run_alone(arguments: list[str], log: Path) -> Process:
    """Run a command to its end."""
    process = Process(arguments, "alone")
    process.start(log)
    while not process.poll():
        time.sleep(0.01)
    return process


def content(out: Path) -> str:
    """Return a digest of a file, or of the names and contents in a folder; empty if there is none."""
    if out.is_dir():
        parts = [
            (path.relative_to(out).as_posix(), path.read_bytes()) for path in sorted(out.rglob("*")) if path.is_file()
        ]
        return hashlib.blake2b(repr(parts).encode()).hexdigest()[:32]
    return hashlib.blake2b(out.read_bytes()).hexdigest()[:32] if out.exists() else ""


class Bench:
    """Bases, data, deltas, and the results and durations of undisturbed runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny_task.bert(folder / "base")
        self.train = tiny_task.table(folder / "train.csv", tiny_task.rows(96))
        self.new = tiny_task.table(folder / "new.csv", [(text,) for text, _ in tiny_task.rows(400, 3)], ("text",))
        self.deltas = [folder / f"delta{seed}.safetensors" for seed in (0, 1)]
        for seed, delta in enumerate(self.deltas):
            assert run_alone([*self.tune(seed), "--out", str(delta)], folder / "log").code == 0
        self._alone: dict[tuple[str, ...], tuple[str, float]] = {}

    def tune(self, seed: int) -> list[str]:
        """Return a run of some 36 steps with a checkpoint after each third."""
        fixed = ["tune", "--model", str(self.folder / "base"), "--train", str(self.train), "--budget", "2%"]
        short = ["--batch-size", "8", "--epochs", "3", "--checkpoint-every", "3", "--threads", "1"]
        return [*fixed, *short, "--seed", str(seed)]

    def predict(self, seed: int) -> list[str]:
        """Return a prediction in 25 blocks, as CSV or JSON."""
        lines = ["--json"] if seed else []
        return ["predict", str(self.deltas[0]), "--data", str(self.new), "--batch-size", "1", *lines]

    def merge(self, seed: int) -> list[str]:
        """Return a merge of one of two deltas."""
        return ["merge", str(self.deltas[seed])]

    def alone(self, arguments: list[str]) -> tuple[str, float]:
        """Return the result of an undisturbed run, and its seconds."""
        key = tuple(argument for argument in arguments if argument not in ("--resume", "--replace"))
        if key not in self._alone:
            found = []
            for run in range(2):
                out = self.folder / f"alone{len(self._alone)}-{run}"
                begin = time.monotonic()
                process = run_alone([*key, "--out", str(out)], self.folder / "log")
                assert process.code == 0, (self.folder / "log").read_text()
                found.append((content(out), time.monotonic() - begin))
            assert found[0][0] == found[1][0], f"{key} does not repeat itself"
            self._alone[key] = min(found, key=lambda one: one[1])
        return self._alone[key]


def pair_of(kind: str, bench: Bench, rng: random.Random) -> list[Process]:
    """Return the two processes of a pair."""
    verb, other = kind.split("/")
    make = {"tune": bench.tune, "predict": bench.predict, "merge": bench.merge}[verb]
    first, second = Process(make(0), "first"), Process(make(1), "second")
    if kind == "tune/resume":
        second = Process([*make(0), "--resume"], "second")
    elif other == "replace" or (verb != "tune" and rng.random() < 0.5):
        second = Process([*make(1), "--replace"], "second", replaces=True)
    elif verb == "predict" and rng.random() < 0.5:
        second = Process([*make(0), "--resume"], "second")
    return [first, second]


def run_pair(seed: int, kind: str, bench: Bench, folder: Path) -> dict[str, Any]:
    """Run a pair of processes and return what became of them, with all faults."""
    rng = random.Random(f"{seed} {kind}")
    out = folder / "out"
    processes = pair_of(kind, bench, rng)
    for process in processes:
        process.arguments = [*process.arguments, "--out", str(out)]
    expected = [bench.alone(process.arguments[:-2]) for process in processes]
    seconds = max(length for _, length in expected)
    starts = [0.0, rng.choice((0.0, rng.random() * 0.2, rng.random() * 1.3)) * seconds]
    kills = [rng.random() * 1.1 * seconds if rng.random() < 0.7 else None for _ in processes]
    begin = time.monotonic()
    faults: list[str] = []
    while not all(process.code is not None for process in processes):
        now = time.monotonic() - begin
        for index, process in enumerate(processes):
            if not process.pid and now >= starts[index]:
                process.start(folder / f"{process.name}.log")
            elif process.pid and not process.poll():
                kill = kills[index]
                if (kill is not None and now >= starts[index] + kill) or now > LIMIT_SECONDS:
                    os.kill(process.pid, signal.SIGKILL)
                    if now > LIMIT_SECONDS:
                        faults.append(f"{process.name} did not end within {LIMIT_SECONDS} s")
                        kills[index] = 0.0
        time.sleep(0.005)
    whole = {digest: process.name for (digest, _), process in zip(expected[::-1], processes[::-1], strict=True)}
    logs = {process.name: process.log.read_text() for process in processes}
    faults += _faults(
        processes, dict(zip(("first", "second"), (digest for digest, _ in expected), strict=True)), out, logs
    )
    result = whole.get(content(out), "none" if not out.exists() else "unknown")
    record = {
        "seed": seed, "pair": kind, "second may replace": processes[1].replaces, "codes": [p.code for p in processes],
        "result": result, "faults": faults,
    }  # fmt: skip
    if not any(process.code == 0 for process in processes) and not out.exists():
        record["continued"] = _continue(processes, expected, out, folder, faults)
    if faults:
        record["logs"] = {name: log[-1500:] for name, log in logs.items()}
    record["left"] = sorted(path.name for path in folder.iterdir() if path.suffix != ".log" and path != out)
    return record


def _faults(processes: list[Process], expected: dict[str, str], out: Path, logs: dict[str, str]) -> list[str]:
    """Return what is wrong with the codes and the output of a pair."""
    faults = [f"{p.name} ended with code 1" for p in processes if p.code not in (0, 2, 3, -signal.SIGKILL)]
    faults += [f"{name} printed a traceback" for name, log in logs.items() if "Traceback (most recent" in log]
    succeeded = sorted((process for process in processes if process.code == 0), key=lambda process: process.ended)
    found = content(out)
    if out.exists() and found not in expected.values():
        faults.append("the output is of neither process")
    if succeeded:
        later = [p for p in processes if p.replaces and p.code != 2 and p is not succeeded[-1]]
        allowed = {expected[process.name] for process in (succeeded[-1], *later)}
        if found not in allowed:
            faults.append(f"{succeeded[-1].name} ended well, but its result is not there")
    if len(succeeded) == 2 and not any(process.replaces for process in succeeded):
        faults.append("both ended well without a permission to replace")
    return faults


def _continue(
    processes: list[Process], expected: list[tuple[str, float]], out: Path, folder: Path, faults: list[str]
) -> str:
    """Continue after both were killed or refused: by --resume if one can, else anew; return which way it was."""
    for process, (digest, _) in zip(processes, expected, strict=True):
        plain = [argument for argument in process.arguments if argument not in ("--resume", "--replace")]
        ways = [["--resume"], []] if plain[0] != "merge" else [[]]
        for way in ways:
            again = run_alone([*plain, *way], folder / "again.log")
            if again.code == 0:
                if content(out) != digest:
                    faults.append(f"continued {way or 'anew'}: another result than that of an undisturbed run")
                return " ".join([process.name, *way])
            if again.code != 2:
                faults.append(f"continuing ended with code {again.code}: {(folder / 'again.log').read_text()[-800:]}")
    faults.append(f"nothing continues: {(folder / 'again.log').read_text()[-800:]}")
    return "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=NUM_PAIRS)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # before forks: a child of a process with threads of torch hangs
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for verb in (
        "cli.tune",
        "training.tune",
        "cli.predict",
        "training.inference",
        "training.prediction_run",
        "cli.merge",
    ):
        importlib.import_module(f"taskedge.{verb}")  # here, not in each fork
    for path in ("delta.interop.export", "delta.interop.merged", "delta.load_with_delta"):
        importlib.import_module(f"taskedge.{path}")
    complete = options.count >= NUM_PAIRS and not options.first
    records = [json.loads(line) for line in DONE.read_text().splitlines()] if complete and DONE.exists() else []
    known = {record["seed"] for record in records}
    home = Path(tempfile.mkdtemp())
    bench = Bench(home)
    for seed in range(options.first, options.first + options.count):
        if seed in known:
            continue
        folder = home / f"pair{seed}"
        folder.mkdir()
        record = run_pair(seed, PAIRS[seed % len(PAIRS)], bench, folder)
        shutil.rmtree(folder, ignore_errors=True)
        records.append(record)
        print(json.dumps(record), flush=True)
        if complete:
            with DONE.open("a") as file:
                file.write(json.dumps(record) + "\n")
    shutil.rmtree(home, ignore_errors=True)
    codes = Counter(code for record in records for code in record["codes"])
    num_faulty = sum(bool(record["faults"]) for record in records)
    figures = [
        figure("pairs with a lost result, a wrong success or exit code 1", [num_faulty], bar=0),
        figure("processes that ended well", [codes[0]]),
        figure("processes that were refused", [codes[2]]),
        figure("processes that were killed", [codes[-signal.SIGKILL]]),
        figure("pairs that left nothing, and were continued by --resume", [_continued(records, True)]),
        figure("pairs that left nothing, and were started again", [_continued(records, False)]),
    ]  # fmt: skip
    show(figures)
    if not complete:
        return
    by_pair = {
        pair: dict(Counter(f"{r['codes']}: {r['result']}" for r in records if r["pair"] == pair)) for pair in PAIRS
    }
    result = {
        "setting": f"{NUM_PAIRS} pairs of processes on one output, 10 of each kind; tiny BERT, one thread",
        "figures": figures, "codes and result by pair": by_pair, "failed": [r for r in records if r["faults"]],
    }  # fmt: skip
    print(write("robustness", "concurrent_runs", result))
    DONE.unlink(missing_ok=True)


def _continued(records: list[dict[str, Any]], resumed: bool) -> int:
    return sum("continued" in record and ("--resume" in record["continued"]) == resumed for record in records)


if __name__ == "__main__":
    main()
