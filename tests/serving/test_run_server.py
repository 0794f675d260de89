"""A server from its settings."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from starlette.testclient import TestClient

from taskedge.delta.file import load, save
from taskedge.errors import TaskEdgeError
from taskedge.serving.run_server import JsonLog, ServerSettings, _base_of, check_address, make_app

TOKEN = "a-token-of-enough-letters"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_token(host):
    check_address(host, None)
    check_address(host, TOKEN)


@pytest.mark.parametrize(
    ("host", "token", "message"),
    [
        ("0.0.0.0", None, "can be reached from other machines: require a token"),
        ("::", None, "can be reached"),
        ("my.host", None, "can be reached"),
        ("127.0.0.1", "short", "the token has 5 characters"),
        ("127.0.0.1", f"{TOKEN}\n", "blanks at its ends"),
    ],
)
def test_addresses_and_tokens_that_are_refused(host, token, message):
    with pytest.raises(TaskEdgeError, match=message):
        check_address(host, token)


def test_the_base_is_the_one_that_the_first_delta_names(bert_tasks, tmp_path):
    shutil.copy(bert_tasks[2]["b"], tmp_path / "b.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    stream = io.StringIO()
    app, tasks = make_app(ServerSettings(tasks=[("mood", bert_tasks[2]["a"])], folder=tmp_path), JsonLog(stream))
    assert [task.name for task in tasks.all()] == ["b", "mood"]
    with TestClient(app, base_url="http://localhost") as client:
        assert client.post("/v1/predict", json={"task": "mood", "inputs": ["good"]}).status_code == 200
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {"task served", "task refused", "request"} <= {event["event"] for event in events}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folder": "missing"}, "there is no such folder to watch"),
        ({"folder": ""}, "no delta names the base"),
        ({"twice": True}, "two tasks are named 'a'"),
        ({"broken": True}, "damaged"),
    ],
)
def test_settings_that_cannot_be_used(bert_tasks, tmp_path, settings, message):
    made = {}
    if "folder" in settings:
        made["folder"] = tmp_path / settings["folder"]
    if "twice" in settings:
        made["tasks"] = [("a", bert_tasks[2]["a"]), ("a", bert_tasks[2]["b"])]
    if "broken" in settings:
        (tmp_path / "x").write_bytes(bert_tasks[2]["a"].read_bytes()[:-5])
        made = {"tasks": [("a", tmp_path / "x")], "model": str(bert_tasks[0])}
    with pytest.raises(TaskEdgeError, match=message):
        make_app(ServerSettings(**made), JsonLog(io.StringIO()))


def test_a_log_on_a_full_disk_ends_nothing():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError("full")

    JsonLog(Full())("event", x=1)


def test_the_dtype_is_the_one_of_the_weights_in_training(bert_tasks, tmp_path):
    """A program may have loaded the base in another dtype than the setting of its delta says."""
    deltas = bert_tasks[2]
    delta = load(deltas["a"])
    assert _base_of(ServerSettings(tasks=[("a", deltas["a"])]))[1] == "fp32"
    for linear in delta.linears.values():
        object.__setattr__(linear, "base_dtype", "bfloat16")
    save(delta, tmp_path / "bf16.safetensors")
    assert _base_of(ServerSettings(tasks=[("a", tmp_path / "bf16.safetensors")]))[1] == "bf16"
    assert _base_of(ServerSettings(tasks=[("a", tmp_path / "bf16.safetensors")], dtype="fp32"))[1] == "fp32"
