"""``taskedge serve``: refusals, and a process that answers until it is told to stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request

import pytest
import tiny_task


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no task to serve"),
        (("--task", "x=missing.safetensors"), "missing.safetensors: cannot be read"),
        (("--watch", "missing"), "there is no such folder to watch"),
        (("--watch", ".", "--host", "0.0.0.0"), "require a token (--token-file)"),
        (("--watch", ".", "--token-file", "nothing"), "nothing: the token cannot be read"),
    ],
)
def test_what_cannot_be_used(taskedge, here, arguments, message, monkeypatch):
    monkeypatch.delenv("TASKEDGE_TOKEN", raising=False)
    done = taskedge("serve", *arguments)
    assert done.code == 2
    assert message in done.err


def test_an_empty_token_file(taskedge, here):
    (here / "token").write_text(" \n")
    done = taskedge("serve", "--watch", ".", "--token-file", "token")
    assert done.code == 2
    assert "token: the file is empty" in done.err


@pytest.mark.slow
def test_a_server_answers_until_it_is_stopped(tuned):
    delta, _ = tuned
    command = [sys.executable, "-m", "taskedge", "serve", "--task", f"mood={delta}", "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=tiny_task.environment())
    try:
        address = ""
        for line in process.stderr:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "listening":
                address = event["address"]
                assert event["tasks"] == ["mood"]
                break
        body = json.dumps({"task": "mood", "inputs": ["good film", "bad film"]}).encode()
        with urllib.request.urlopen(f"{address}/v1/predict", body, timeout=30) as answer:
            told = json.load(answer)
        assert [each["label"] in ("neg", "pos") for each in told["answers"]] == [True, True]
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM)
    assert '"event": "request"' in rest
