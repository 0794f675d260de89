"""The engine: mixed batches, limits, deadlines, and rows that fail without harm to others."""

from __future__ import annotations

import threading
import time

import pytest
import tiny_server

from taskedge.serving.engine import DeadlinePassed, Overloaded, Stopped, Work
from taskedge.serving.request_bodies import text_rows


def works_of(task, texts=tiny_server.TEXTS, seconds=60.0, **more):
    return [Work(task, row, time.monotonic() + seconds, **more) for row in text_rows(task, list(texts))[0]]


def test_rows_of_different_tasks_share_a_batch(served, bert_tasks):
    tasks, engine = served
    batches = []
    engine._on_batch = lambda works, seconds: batches.append(works)
    works = {name: works_of(tasks.get(name)) for name in ("a", "b", "r")}
    engine.submit([work for of_task in zip(*works.values(), strict=True) for work in of_task])
    for name, of_task in works.items():
        answers = [work.answer.result(10) for work in of_task]
        tiny_server.assert_close(answers, tiny_server.expected(bert_tasks[1][name], bert_tasks[0], tiny_server.TEXTS))
    assert [len(batch) for batch in batches] == [12]


def test_an_answer_does_not_depend_on_its_neighbors(served):
    tasks, engine = served

    def alone_and_beside(others):
        work = works_of(tasks.get("a"), ["good film"])
        engine.submit([*work, *(each for name in others for each in works_of(tasks.get(name)))])
        return work[0].answer.result(10)

    first = alone_and_beside([])
    for others in (["b"], ["a", "b", "r"], ["r"] * 5):
        tiny_server.assert_close([alone_and_beside(others)], [first])


def test_sets_of_labels_share_a_batch_with_classes(set_tasks):
    folder, deltas, files = set_tasks
    tasks, engine = tiny_server.parts(folder)
    batches = []
    engine._on_batch = lambda works, seconds: batches.append(works)
    for name, path in files.items():
        tasks.add(name, path)
    works = {name: works_of(tasks.get(name)) for name in files}
    engine.submit([work for of_task in zip(*works.values(), strict=True) for work in of_task])
    for name, of_task in works.items():
        answers = [work.answer.result(10) for work in of_task]
        tiny_server.assert_close(answers, tiny_server.expected(deltas[name], folder, tiny_server.TEXTS))
    assert [len(batch) for batch in batches] == [8]
    assert answers[0].keys() == {"label", "probability"}
    assert [answer["labels"] for answer in tiny_server.expected(deltas["a"], folder, tiny_server.TEXTS)] != [[]] * 4
    engine.close()


def held(engine):
    """Keep the engine busy until the returned event is set."""
    started, release = threading.Event(), threading.Event()
    threading.Thread(target=lambda: engine.run(lambda: (started.set(), release.wait(10)))).start()
    started.wait(10)
    return release


def test_batches_and_the_queue_have_limits(bert_tasks):
    folder, _, files = bert_tasks
    tasks, engine = tiny_server.parts(folder, max_rows=3, max_waiting=8)
    tasks.add("a", files["a"])
    batches = []
    engine._on_batch = lambda works, seconds: batches.append(len(works))
    release = held(engine)
    works = [work for _ in range(2) for work in works_of(tasks.get("a"))]
    engine.submit(works)
    assert engine.num_waiting == 8
    with pytest.raises(Overloaded, match="8 rows wait, and at most 8 may"):
        engine.submit(works_of(tasks.get("a"), ["a"]))
    release.set()
    [work.answer.result(10) for work in works]
    engine.close()
    assert batches == [3, 3, 2]
    with pytest.raises(Stopped):
        engine.submit(works)
    with pytest.raises(Stopped):
        engine.run(int)


def test_the_tokens_of_a_batch_are_limited_padding_included(bert_tasks):
    folder, _, files = bert_tasks
    tasks, engine = tiny_server.parts(folder, max_tokens=26)
    tasks.add("a", files["a"])
    batches = []
    engine._on_batch = lambda works, seconds: batches.append([work.num_tokens for work in works])
    release = held(engine)
    works = works_of(tasks.get("a"))  # 4, 13, 3 and 9 tokens
    engine.submit(works)
    release.set()
    [work.answer.result(10) for work in works]
    engine.close()
    assert batches == [[4, 13], [3, 9]]


def test_rows_too_late_or_not_wanted_are_dropped(served):
    tasks, engine = served
    release = held(engine)
    late, cancelled, good = (works_of(tasks.get("a"), ["a"])[0] for _ in range(3))
    late.deadline = time.monotonic() - 1
    cancelled.cancelled.set()
    engine.submit([late, cancelled, good])
    release.set()
    assert good.answer.result(10)["label"] in tiny_server.LABELS["a"]
    for work in (late, cancelled):
        with pytest.raises(DeadlinePassed):
            work.answer.result(10)


def test_a_row_that_fails_does_not_harm_the_others(served):
    tasks, engine = served
    bad = Work(tasks.get("b"), {"input_ids": [2, 10**6, 3], "attention_mask": [1, 1, 1]}, time.monotonic() + 60)
    good = works_of(tasks.get("a"))
    engine.submit([good[0], bad, *good[1:]])
    assert all(work.answer.result(10)["label"] for work in good)
    with pytest.raises(Exception, match="token 1000000 has no embedding"):
        bad.answer.result(10)
    assert engine.is_alive


def test_jobs_give_their_result_or_their_error(served):
    _, engine = served
    assert engine.run(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        engine.run(lambda: 1 / 0)


@pytest.mark.slow
def test_generated_rows_of_different_tasks(gpt2_tasks):
    folder, deltas, files = gpt2_tasks
    tasks, engine = tiny_server.parts(folder)
    for name, path in files.items():
        tasks.add(name, path)
    texts: list[str] = []
    works = {name: works_of(tasks.get(name)) for name in ("g", "h", "b")}
    works["g"][0].on_text = texts.append
    engine.submit([work for of_task in zip(*works.values(), strict=True) for work in of_task])
    for name, of_task in works.items():
        answers = [work.answer.result(20) for work in of_task]
        tiny_server.assert_close(answers, tiny_server.expected(deltas[name], folder, tiny_server.TEXTS))
    first = works["g"][0].answer.result()
    assert first["tokens"] == len(texts)
    assert not texts or texts[-1] == first["response"]
    engine.close()
