"""Who may send, how much; errors as JSON."""

from __future__ import annotations

import asyncio
import json

import pytest
import tiny_server
from starlette.testclient import TestClient

from taskedge.errors import DeltaError
from taskedge.serving.engine import DeadlinePassed, Overloaded, Stopped
from taskedge.serving.http_guard import BodyTooLarge, BodyTooSlow, HttpGuard, HttpLimits, error_status
from taskedge.serving.serving_metrics import ServingMetrics
from taskedge.serving.task_files import UnknownTask

TOKEN = "a-token-of-enough-letters"


@pytest.fixture
def client(served):
    """Make a client; limits and token are those of the application."""

    def make(host="localhost", **options):
        tasks, engine = served
        return TestClient(tiny_server.app(tasks, engine, **options), base_url=f"http://{host}")

    return make


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:9", "LOCALHOST"])
def test_this_machine_may_send(client, host):
    assert client(host).get("/v1/tasks").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1"])
def test_other_names_are_refused_without_a_token(client, host):
    answer = client(host).get("/v1/tasks")
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "forbidden"


def test_the_token_is_required_everywhere_but_for_health_and_the_page_that_asks_for_it(client):
    sender = client("other.example", token=TOKEN)
    assert sender.get("/healthz").status_code == 200
    assert sender.get("/").status_code == 200
    for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
        for path in ("/metrics", "/v1/tasks", "/v1/tasks/a"):
            answer = sender.get(path, headers=given)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    assert sender.get("/v1/tasks", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_pages_of_other_sites_may_not_send_to_this_machine(client):
    """A browser sends such a POST without asking first; only the answer is kept from the page."""
    body = {"task": "a", "inputs": ["good film"]}
    for origin in ("https://evil.example", "http://localhost.evil.example:80", "null", ""):
        answer = client().post("/v1/predict", json=body, headers={"origin": origin})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    for origin in ("http://localhost:8080", "http://127.0.0.1", "http://[::1]:9"):
        assert client().post("/v1/predict", json=body, headers={"origin": origin}).status_code == 200


def test_bodies_that_are_read_at_once_are_limited_together(client):
    sender = client(held_bytes=1000)
    assert sender.put("/v1/tasks/x", content=b"x" * 1001).status_code == 429
    for _ in range(3):  # a finished request holds nothing
        assert sender.put("/v1/tasks/x", content=b"x" * 900).status_code == 400


def guarded(receive, method="POST", **limits):
    """Send one request with this ``receive`` to a guard around an app that reads the body; return its messages."""
    sent = []

    async def app(_scope, receive, _send):
        while (await receive()).get("more_body"):
            pass

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/", "method": method, "headers": [(b"host", b"localhost")]}
    guard = HttpGuard(app, HttpLimits(**limits), None, ServingMetrics(), lambda *_, **__: None)
    asyncio.run(guard(scope, receive, send))
    return sent


def test_a_body_that_never_ends_is_given_up():
    async def never():
        await asyncio.sleep(60)

    assert guarded(never, seconds=0.02)[0]["status"] == 408

    async def drops():
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    assert guarded(drops, seconds=0.05)[0]["status"] == 408


def test_a_task_file_may_take_longer_than_a_request_while_it_comes():
    parts = iter(range(8))

    async def drops():
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": next(parts) < 7}

    assert guarded(drops, method="PUT", seconds=0.05) == []


def test_bodies_are_limited(client):
    sender = client(body_bytes=1000, task_bytes=2000)
    answer = sender.post("/v1/predict", content=b"x" * 1001)
    assert answer.status_code == 413
    assert "1,001 bytes, and at most 1,000" in answer.json()["error"]["message"]
    streamed = sender.post("/v1/predict", content=(b"x" * 400 for _ in range(4)))  # without a stated length
    assert streamed.status_code == 413
    assert sender.put("/v1/tasks/x", content=b"x" * 2001).status_code == 413
    assert sender.put("/v1/tasks/x", content=b"x" * 1500).status_code == 400


def test_one_log_line_a_request_without_contents(client):
    events = []
    sender = client(log=lambda event, **fields: events.append((event, fields)))
    sender.post("/v1/predict", json={"task": "a", "inputs": ["good film"]})
    sender.get("/nowhere/secret")
    (first, second) = [fields for event, fields in events if event == "request"]
    assert (first["path"], first["status"], first["task"], first["rows"]) == ("/v1/predict", 200, "a", 1)
    assert (second["path"], second["status"]) == ("other", 404)
    assert "film" not in json.dumps(events)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Overloaded("x"), 429), (Stopped("x"), 503), (DeadlinePassed("x"), 504), (UnknownTask("x"), 404),
        (BodyTooLarge("x"), 413), (BodyTooSlow("x"), 408), (DeltaError("x"), 400), (ValueError("x"), 500),
    ],
)  # fmt: skip
def test_statuses(error, status):
    assert error_status(error)[0] == status


def test_a_fault_does_not_show_its_inside(client, monkeypatch):
    events = []
    monkeypatch.setattr("taskedge.serving.task_files.ServedTasks.describe", lambda _: 1 / 0)
    sender = client(log=lambda event, **fields: events.append((event, fields)))
    answer = sender.get("/v1/tasks")
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert ("fault", {"path": "/v1/tasks", "error": "ZeroDivisionError: division by zero"}) in events
