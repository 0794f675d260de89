"""The paths of the server, through the whole application."""

from __future__ import annotations

import json
import threading
import time

import pytest
import tiny_server
from starlette.testclient import TestClient

TEXTS = list(tiny_server.TEXTS)


def client_of(fixture, watched=None, **options):
    folder, _, files = fixture
    tasks, engine = tiny_server.parts(folder, watched)
    for name, path in files.items():
        tasks.add(name, path)
    return TestClient(tiny_server.app(tasks, engine, **options), base_url="http://localhost"), tasks, engine


@pytest.fixture
def texts(bert_tasks):
    client, _, engine = client_of(bert_tasks)
    yield client
    engine.close()


@pytest.fixture
def chats(gpt2_tasks):
    client, _, engine = client_of(gpt2_tasks)
    yield client
    engine.close()


def test_predict_gives_the_answers_of_the_applied_delta(texts, bert_tasks):
    for name, delta in bert_tasks[1].items():
        answer = texts.post("/v1/predict", json={"task": name, "inputs": TEXTS})
        assert answer.status_code == 200
        assert answer.json()["task"] == name
        tiny_server.assert_close(answer.json()["answers"], tiny_server.expected(delta, bert_tasks[0], TEXTS))


def test_curl_sends_json_as_a_form(texts):
    content = json.dumps({"task": "a", "inputs": ["good"]})
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert texts.post("/v1/predict", content=content, headers=headers).status_code == 200


def test_what_is_cut_is_told(texts):
    told = texts.post("/v1/predict", json={"task": "a", "inputs": ["long " * 60]}).json()
    assert "1 of 1 rows have more than 40 tokens and are cut" in told["notes"][0]


def test_images(vit_tasks):
    client, _, engine = client_of(vit_tasks, inputs=4)
    paths = sorted((vit_tasks[0].parent / "images").rglob("*.png"))
    files = [("files", (path.name, path.read_bytes())) for path in paths]
    answer = client.post("/v1/predict", data={"task": "a"}, files=files)
    assert answer.status_code == 200, answer.text
    tiny_server.assert_close(answer.json()["answers"], tiny_server.expected(vit_tasks[1]["a"], vit_tasks[0], paths))
    many = client.post("/v1/predict", data={"task": "a"}, files=files * 2)
    assert many.status_code == 400
    none = client.post("/v1/predict", data={"task": "a"}, files=[("files", ("x", b"no image"))])
    assert none.status_code == 400
    assert "the image cannot be read" in none.json()["error"]["message"]
    engine.close()


def test_chat(chats, gpt2_tasks):
    (truth,) = tiny_server.expected(gpt2_tasks[1]["g"], gpt2_tasks[0], ["good film"])
    body = {"model": "g", "messages": [{"role": "user", "content": "good film"}]}
    told = chats.post("/v1/chat/completions", json=body).json()
    assert told["object"] == "chat.completion"
    assert told["choices"][0]["message"] == {"role": "assistant", "content": truth["response"]}
    assert told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] + told["usage"]["completion_tokens"]
    assert [model["id"] for model in chats.get("/v1/models").json()["data"]] == ["g", "h"]
    long = chats.post("/v1/chat/completions", json=body | {"max_tokens": 999}).json()
    assert "tokens are generated, as in training, not 999" in long["notes"][0]
    answers = chats.post("/v1/predict", json={"task": "g", "inputs": ["good film"]}).json()["answers"]
    assert answers[0]["response"] == truth["response"]


def test_a_stream_has_the_same_text(chats, gpt2_tasks):
    body = {"model": "g", "messages": [{"role": "user", "content": "a night"}], "stream": True}
    (truth,) = tiny_server.expected(gpt2_tasks[1]["g"], gpt2_tasks[0], ["a night"])
    with chats.stream(
        "POST", "/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    parts = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
    assert "".join(parts) == truth["response"]
    assert events[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    assert events[-1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("predict", {"task": "aa", "inputs": ["x"]}, 404, "there is no task 'aa'; did you mean 'a'"),
        ("predict", {"task": "a", "inputs": ["x"] * 300}, 400, "300 inputs, and at most 256"),
        ("predict", {"task": "a", "inputs": ["x"], "max_new_tokens": 3}, 400, "generates no text"),
        ("predict", {"task": "a", "inputs": [""]}, 400, "input 1 is empty"),
        ("chat/completions", {"model": "a", "messages": [{"role": "user", "content": "x"}]}, 400, "POST it to"),
    ],
)
def test_requests_that_cannot_be_answered(texts, path, body, status, message):
    answer = texts.post(f"/v1/{path}", json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_tasks_come_and_go(bert_tasks, tmp_path):
    folder, _, files = bert_tasks
    client, tasks, engine = client_of((folder, {}, {}), tmp_path)
    with client:
        put = client.put("/v1/tasks/spam", content=files["a"].read_bytes())
        assert put.status_code == 200
        assert put.json()["stored"]
        broken = client.put("/v1/tasks/spam", content=files["b"].read_bytes()[:-9])
        assert broken.status_code == 400
        assert client.get("/v1/tasks/spam").json()["labels"] == list(tiny_server.LABELS["a"])
        (tmp_path / "mood.safetensors").write_bytes(files["b"].read_bytes())
        (tmp_path / "bad.safetensors").write_bytes(b"bad")
        until = time.monotonic() + 10
        while time.monotonic() < until and not (len(tasks.all()) == 2 and tasks.errors):
            time.sleep(0.02)
        told = client.get("/v1/tasks").json()
        assert [task["name"] for task in told["tasks"]] == ["mood", "spam"]
        assert [each["name"] for each in told["refused"]] == ["bad"]
        assert client.delete("/v1/tasks/mood").json() == {"removed": ["mood"]}
        assert not (tmp_path / "mood.safetensors").exists()
        assert client.delete("/v1/tasks/mood").status_code == 404
        assert client.put("/v1/tasks/..%2Fx", content=b"").status_code in (400, 404)
    assert not engine.is_alive  # the end of the application ends the engine


@pytest.mark.slow
def test_a_full_queue_is_429_and_a_late_answer_504(bert_tasks):
    client, _, engine = client_of(bert_tasks, seconds=0.2)
    engine.limits = type(engine.limits)(max_waiting=3)
    started, release = threading.Event(), threading.Event()
    threading.Thread(target=lambda: engine.run(lambda: (started.set(), release.wait(20)))).start()
    started.wait(10)
    full = client.post("/v1/predict", json={"task": "a", "inputs": TEXTS})
    assert full.status_code == 429
    assert full.headers["retry-after"] == "1"
    late = client.post("/v1/predict", json={"task": "a", "inputs": ["a"]})
    assert late.status_code == 504
    release.set()
    engine.close()


def test_health_metrics_and_the_page(texts):
    texts.post("/v1/predict", json={"task": "a", "inputs": TEXTS})
    assert texts.get("/healthz").json() == {"status": "ok"}
    metrics = texts.get("/metrics").text
    assert 'taskedge_rows_total{task="a"} 4.0' in metrics
    assert 'taskedge_requests_total{path="/v1/predict",status="200"} 1.0' in metrics
    assert "taskedge_tasks 3.0" in metrics
    page = texts.get("/")
    assert "<title>taskedge serve</title>" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert texts.get("/nowhere").status_code == 404
    assert texts.get("/v1/predict").json()["error"]["code"] == "wrong_method"


def test_targets_of_an_encoder_decoder(t5_tasks):
    folder, deltas, _ = t5_tasks
    client, _, engine = client_of(t5_tasks)
    for name, delta in deltas.items():
        answer = client.post("/v1/predict", json={"task": name, "inputs": TEXTS}).json()
        truth = [each["target"] for each in tiny_server.expected(delta, folder, TEXTS)]
        assert [each["target"] for each in answer["answers"]] == truth
        assert {*answer["answers"][0]} == {"target", "finish", "source_tokens", "tokens"}
    assert len({*truth}) > 1
    short = client.post("/v1/predict", json={"task": "s", "inputs": TEXTS[:1], "max_new_tokens": 1}).json()
    assert short["answers"][0]["tokens"] <= 1
    long = client.post("/v1/predict", json={"task": "s", "inputs": TEXTS[:1], "max_new_tokens": 99}).json()
    assert long["notes"] == ["at most 4 tokens are generated, as in training, not 99"]
    assert client.get("/v1/tasks").json()["tasks"][0]["batches"] == "mixed"
    chat = client.post("/v1/chat/completions", json={"model": "s", "messages": [{"role": "user", "content": "a"}]})
    assert chat.status_code == 400
    assert "is for text-to-text, not for text-generation" in chat.json()["error"]["message"]
    engine.close()


def test_tags_of_tokens(tag_tasks):
    folder, deltas, _ = tag_tasks
    client, _, engine = client_of(tag_tasks)
    for name in ("a", "b"):
        answers = client.post("/v1/predict", json={"task": name, "inputs": TEXTS}).json()["answers"]
        joined = ["\n".join(text.split()) for text in TEXTS]
        truth = [each["tags"].split() for each in tiny_server.expected(deltas[name], folder, joined)]
        assert [each["tags"] for each in answers] == truth
        assert [each["tokens"] for each in answers] == [text.split() for text in TEXTS]
    assert len({tag for tags in truth for tag in tags}) > 1
    assert client.post("/v1/predict", json={"task": "c", "inputs": TEXTS}).status_code == 200
    cut = client.post("/v1/predict", json={"task": "a", "inputs": ["long " * 60]}).json()
    assert (len(cut["answers"][0]["tags"]), "are cut: 22 of their tokens are not read" in cut["notes"][0]) == (60, True)
    engine.close()


def test_a_soft_prompt_is_served_alone(gpt2_tasks, tmp_path):
    import torch

    import taskedge as te
    from taskedge.backbone.loading import load_base
    from taskedge.delta.prompt_delta import extracted_prompt
    from taskedge.forms.prompt import PromptLayout, attach_prompt, with_prompt_room
    from taskedge.training.soft_prompts import prompt_rows
    from taskedge.training.tasks import task_of_delta

    folder, deltas, files = gpt2_tasks
    base = load_base("text-generation", folder)
    layout = PromptLayout(("g",), 3, base.model.get_input_embeddings().num_embeddings, repeat=True, segments=True)
    drawn = torch.Generator().manual_seed(0)
    attach_prompt(base.model, layout, torch.randn(1, 3, 16, generator=drawn), torch.randn(3, 16, generator=drawn))
    delta = te.Delta({}, provenance=deltas["g"].provenance, prompt=extracted_prompt(base.model))
    base.model.eval()
    task = task_of_delta(delta.provenance).bind(with_prompt_room(base))
    rows = prompt_rows(base, tiny_server.rows_of(task, with_prompt_room(base), TEXTS))
    truth = task.predict(base.model, base, rows, 1, str)
    path = te.save(delta, tmp_path / "p.safetensors")
    client, tasks, engine = client_of((folder, None, {**files, "p": path}))
    answers = client.post("/v1/predict", json={"task": "p", "inputs": TEXTS}).json()["answers"]
    assert [each["response"] for each in answers] == [each["response"] for each in truth]
    assert tasks.get("p").describe()["alone_because"] == "it has a soft prompt"
    others = client.post("/v1/predict", json={"task": "g", "inputs": TEXTS}).json()["answers"]
    tiny_server.assert_close(others, tiny_server.expected(deltas["g"], folder, TEXTS))
    engine.close()
