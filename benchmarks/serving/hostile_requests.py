"""Hostile requests and task files against the server, and kills at random moments.

    python -m benchmarks.serving.hostile_requests             # ten minutes on one busy core
    python -m benchmarks.serving.hostile_requests --requests 1000 --kills 3

Requests run through the whole application in one process, on a tiny BERT: broken and deep JSON, wrong types, unknown
tasks and paths, odd headers, images for texts, and task files that are cut, flipped or forged with a valid digest.
After every hundredth, each task must still give its own answer. Then a server is killed with SIGKILL again and again
while a client uploads tasks: after a new start every confirmed task must be there and give its own answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from transformers import logging

from benchmarks.record import TEST_HELPERS, write

sys.path.insert(0, str(TEST_HELPERS))
import delta_files
import tiny_server

import taskedge as te
from taskedge.serving.engine import EngineLimits
from taskedge.serving.entry_product import add_product
from taskedge.serving.http_guard import HttpLimits
from taskedge.serving.run_server import JsonLog, ServerSettings, serve
from taskedge.serving.task_files import ServedTasks
from taskedge.serving.task_table import EntryTable

RESULTS = ("hostile_requests.json",)

TEXT = "the plot was very long and the actor so bad"
PORT = 18473
LONGEST_LIFE = 2.5
"""Seconds from the first answer of a server to its end, at most."""
STRINGS = (
    "",
    "a",
    "b",
    "good",
    "\u0000",
    "é" * 300,
    "[SEP]" * 50,
    "a" * 5000,
    "\ud83d\ude00",
    "../../etc",
    "a/b",
    "%00",
    "NaN",
)


def junk(draw: random.Random, depth: int = 0) -> Any:
    """A random JSON value."""
    kind = draw.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [junk(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 7:
        return {draw.choice(("task", "inputs", "model", "x")): junk(draw, depth + 1) for _ in range(draw.randrange(4))}
    return (None, True, draw.randint(-(10**20), 10**20), draw.random(), draw.choice(STRINGS), -1)[kind]


def hostile_body(draw: random.Random) -> bytes:
    body: dict[str, Any] = {"task": draw.choice(("a", "b", "r", "zz")), "inputs": ["good film"]}
    kind = draw.randrange(9)
    if kind == 0:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(60)))
    if kind == 1:
        return b"[" * draw.randrange(1, 20000)
    if kind == 2:
        return json.dumps(junk(draw)).encode()
    if kind == 3:
        body[draw.choice(("task", "inputs", "max_new_tokens", "y"))] = junk(draw)
    elif kind == 4:
        body["inputs"] = [junk(draw) for _ in range(draw.randrange(300))]
    elif kind == 5:
        body = {"model": draw.choice("abz"), "messages": junk(draw)}
    elif kind == 6:
        body["inputs"] = [draw.choice(STRINGS) for _ in range(draw.randrange(1, 4))]
    elif kind == 7:
        text = json.dumps(body).encode()
        return text[: draw.randrange(len(text))]
    else:
        del body[draw.choice(("task", "inputs"))]
    return json.dumps(body).encode()


def hostile_file(draw: random.Random, good: list[bytes]) -> bytes:
    """A delta file that is cut, flipped or forged; in the last case with a valid digest."""
    content = bytearray(draw.choice(good))
    kind = draw.randrange(5)
    if kind == 0:
        return bytes(content[: draw.randrange(len(content))])
    if kind == 1:
        for _ in range(draw.randrange(1, 6)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        return bytes(content)
    if kind == 2:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(200)))

    def change_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = draw.choice(sorted(tensors))
        changed = tensors[name].clone()
        value = draw.choice((float("nan"), float("inf"), -1.0, 3e38, 70000.0))
        if changed.is_floating_point():
            changed.view(-1)[draw.randrange(changed.numel())] = value
        else:
            changed = changed[: draw.randrange(len(changed))]
        return tensors | {name: changed}

    def change_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
        key = draw.choice(sorted(manifest))
        if key == "provenance" and draw.random() < 0.8:
            part = draw.choice(sorted(manifest[key]))
            manifest[key][part] = junk(draw)
        else:
            manifest[key] = junk(draw)
        return manifest

    one = {"change_tensors": change_tensors} if kind == 3 else {"change_manifest": change_manifest}
    return delta_files.signed(bytes(content), **one)


async def call(app: Any, method: str, path: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes]:
    """Send one request to the application and return status and body."""
    parts: list[bytes] = []
    status = 0
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode("utf-8", "replace"), "query_string": b"", "root_path": "", "scheme": "http",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return status, b"".join(parts)


def next_request(draw: random.Random, good: list[bytes]) -> tuple[str, str, bytes, list[tuple[bytes, bytes]]]:
    headers = [(b"host", b"localhost")]
    kind = draw.randrange(20)
    if kind < 2:
        return (
            "PUT",
            f"/v1/tasks/{draw.choice(('a', 'b', 'new', '..', 'x' * 80, 'ü'))}",
            hostile_file(draw, good),
            headers,
        )
    if kind < 4:
        path = draw.choice(
            ("/", "/v1", "/v1/tasks/zz", "/v1/tasks/" + draw.choice(STRINGS), "/../x", "//", "/metrics/x")
        )
        return draw.choice(("GET", "POST", "DELETE", "PATCH", "BREW")), path, b"", headers
    if kind == 4:
        return "POST", "/v1/predict", b"x" * draw.randrange(20000, 40000), headers
    if kind == 5:
        return "POST", "/v1/predict", hostile_body(draw), [(b"host", draw.choice((b"evil", b"", b"\xff", b"[::1")))]
    if kind == 6:
        form = (
            b"--x\r\nContent-Disposition: form-data; name=files; filename=y\r\n\r\n" + hostile_body(draw) + b"\r\n--x--"
        )
        form = form[: draw.randrange(len(form))] if draw.random() < 0.5 else form
        return "POST", "/v1/predict", form, [*headers, (b"content-type", b"multipart/form-data; boundary=x")]
    path = "/v1/chat/completions" if kind == 7 else "/v1/predict"
    return "POST", path, hostile_body(draw), headers


async def attack(count: int, seed: int, folder: Path, made: dict[str, te.Delta], base: Path) -> dict[str, Any]:
    files = {name: te.save(delta, folder / f"{name}.safetensors") for name, delta in made.items()}
    good = [path.read_bytes() for path in files.values()]
    watched = folder / "watched"
    watched.mkdir()
    faults: list[str] = []
    log: Callable[..., None] = lambda event, **about: faults.append(str(about)) if event == "fault" else None  # noqa: E731
    tasks, engine = tiny_server.parts(base, watched)
    for name in files:
        tasks.put(name, files[name].read_bytes())
    app = tiny_server.app(tasks, engine, log=log, body_bytes=30_000, task_bytes=1_000_000)
    truth = {name: tiny_server.expected(delta, base, [TEXT]) for name, delta in made.items()}
    draw, statuses, wrong, accepted = random.Random(seed), Counter[int](), 0, 0
    for number in range(count):
        method, path, body, headers = next_request(draw, good)
        status, _ = await call(app, method, path, body, headers)
        statuses[status] += 1
        if (
            method == "PUT" and status == 200
        ):  # a change that leaves a sound task of the same base: put the own one back
            accepted += 1
            await asyncio.to_thread(restore, tasks, files)
        elif method == "DELETE" and status == 200:
            await asyncio.to_thread(restore, tasks, files)
        if number % 100 == 99:
            wrong += await wrong_answers(app, truth)
    result = {
        "requests": count, "statuses": {str(key): value for key, value in sorted(statuses.items())},
        "faults": len(faults), "first_faults": faults[:5], "accepted_files": accepted, "wrong_answers": wrong,
        "checks": count // 100 * len(truth), "tasks_lost": len(made.keys() - {task.name for task in tasks.all()}),
        "engine_alive": engine.is_alive,
    }  # fmt: skip
    engine.close()
    return result


def restore(tasks: ServedTasks, files: dict[str, Path]) -> None:
    for task in tasks.all():
        if task.name not in files:
            tasks.remove(task.name.partition(".")[0] if task.name not in tasks._of_file else task.name)
    for name, path in files.items():
        tasks.put(name, path.read_bytes())


async def wrong_answers(app: Any, truth: dict[str, list[dict[str, Any]]]) -> int:
    wrong = 0
    for name, expected in truth.items():
        body = json.dumps({"task": name, "inputs": [TEXT]}).encode()
        status, content = await call(app, "POST", "/v1/predict", body, [(b"host", b"localhost")])
        wrong += status != 200 or not same(json.loads(content)["answers"], expected)
    return wrong


def same(answers: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    try:
        tiny_server.assert_close(answers, expected, 2e-5)
    except AssertionError:
        return False
    return True


def started(base: Path, folder: Path) -> int:
    """Start a server in a process of its own and return its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        settings = ServerSettings(
            model=str(base), folder=folder, port=PORT, engine=EngineLimits(), http=HttpLimits(seconds=5)
        )
        with Path(os.devnull).open("w") as nowhere:
            serve(settings, JsonLog(nowhere))
    finally:
        os._exit(1)


def until_ready(client: httpx.Client) -> None:
    for _ in range(600):
        try:
            if client.get("/healthz").status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise RuntimeError("the server does not start")


def kills(count: int, seed: int, folder: Path, base: Path, versions: list[te.Delta]) -> dict[str, Any]:
    """Upload versions of tasks until the server is killed; check all after the next start."""
    contents = [te.save(delta, folder / f"v{index}").read_bytes() for index, delta in enumerate(versions)]
    truth = [tiny_server.expected(delta, base, [TEXT]) for delta in versions]
    watched = folder / "killed"
    watched.mkdir()
    draw = random.Random(seed)
    confirmed: dict[str, int] = {}
    uploads = lost = wrong = 0
    for _ in range(count):
        pid = started(base, watched)
        pending: tuple[str, int] | None = None
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=10) as client:
            until_ready(client)
            for name, version in confirmed.items():
                answer = client.post("/v1/predict", json={"task": name, "inputs": [TEXT]})
                lost += answer.status_code == 404
                wrong += answer.status_code != 200 or not same(answer.json()["answers"], truth[version])
            end = time.monotonic() + draw.uniform(0, LONGEST_LIFE)
            killer = os.fork()
            if not killer:
                time.sleep(max(0.0, end - time.monotonic()))
                os.kill(pid, signal.SIGKILL)
                os._exit(0)
            try:
                while True:
                    pending = f"t{draw.randrange(6)}", draw.randrange(len(versions))
                    client.put(f"/v1/tasks/{pending[0]}", content=contents[pending[1]]).raise_for_status()
                    confirmed[pending[0]], uploads, pending = pending[1], uploads + 1, None
            except httpx.HTTPError:
                pass
        os.waitpid(killer, 0)
        os.waitpid(pid, 0)
        if pending is not None:  # it may or may not have been stored: what lies there now is what counts
            stored = watched / f"{pending[0]}.safetensors"
            if stored.exists() and stored.read_bytes() == contents[pending[1]]:
                confirmed[pending[0]] = pending[1]
    leftovers = sum(path.name.startswith(".") for path in watched.iterdir())
    return {
        "kills": count, "uploads": uploads, "tasks_lost": lost, "wrong_answers": wrong,
        "temporary_files_left": leftovers,
    }  # fmt: skip


def compile_loops() -> None:
    """Compile what the servers need before they are forked from this process."""
    table = EntryTable((2, 3), torch.zeros(2).to(torch.uint16), torch.ones(2), None, 1)
    uneven = EntryTable((2, 3), torch.zeros(1).to(torch.uint16), torch.ones(1), torch.tensor([0, 1, 1]).int(), 0)
    for each in (table, uneven):
        add_product(torch.zeros(1, 1, 2), torch.ones(1, 1, 3), np.array([0]), each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny_server.base_folder("bert", "text-classification", folder / "base")
        kinds = {"a": "text-classification", "b": "text-classification", "r": "text-regression"}
        made = {
            key: tiny_server.delta_of("bert", kind, base, seed, tiny_server.LABELS.get(key, ()))
            for seed, (key, kind) in enumerate(kinds.items())
        }
        versions = [
            tiny_server.delta_of("bert", "text-classification", base, seed, tiny_server.LABELS["a"])
            for seed in range(10, 15)
        ]
        compile_loops()
        after = kills(options.kills, options.seed, folder, base, versions)  # first: a fork wants no other threads
        print(after)
        result = asyncio.run(attack(options.requests, options.seed, folder, made, base))
        print(result)
    bad = (
        result["faults"] + result["wrong_answers"] + result["tasks_lost"] + after["tasks_lost"] + after["wrong_answers"]
    )
    print("crashes, lost tasks and wrong answers:", bad)
    setting = (
        "a tiny BERT with three tasks; requests through the whole application in one process, a check of every task's "
        "answer after each hundredth; kills of a server process with SIGKILL while tasks are uploaded"
    )
    write(
        "serving", "hostile_requests", {"setting": setting, "attack": result, "kills": after, "bar": 0, "met": not bad}
    )


if __name__ == "__main__":
    main()
