"""Tasks come, change and go; what is broken never takes a running task down."""

from __future__ import annotations

import os

import pytest
import tiny_server

import taskedge as te
from taskedge.errors import DeltaError, InputError
from taskedge.serving.task_files import UnknownTask, remove_leftovers


@pytest.fixture
def watched(bert_tasks, tmp_path):
    events = []
    tasks, engine = tiny_server.parts(bert_tasks[0], tmp_path)
    tasks._log = lambda event, **fields: events.append((event, fields))
    yield tasks, tmp_path, {name: path.read_bytes() for name, path in bert_tasks[2].items()}, events
    engine.close()


def names(tasks):
    return [task.name for task in tasks.all()]


def test_files_come_change_and_go(watched):
    tasks, folder, files, events = watched
    (folder / "one.safetensors").write_bytes(files["a"])
    (folder / "note.txt").write_text("not a task")
    tasks.scan()
    assert names(tasks) == ["one"]
    first = tasks.get("one")
    tasks.scan()
    assert tasks.get("one") is first  # nothing changed, nothing is loaded
    (folder / "one.safetensors").write_bytes(files["b"])
    tasks.scan()
    assert tasks.get("one").task.labels == tiny_server.LABELS["b"]
    (folder / "one.safetensors").unlink()
    tasks.scan()
    assert names(tasks) == []
    assert [event for event, _ in events] == ["task served", "task served", "task removed"]


def test_a_broken_file_leaves_the_running_task(watched):
    tasks, folder, files, events = watched
    path = folder / "one.safetensors"
    path.write_bytes(files["a"])
    tasks.scan()
    running = tasks.get("one")
    path.write_bytes(files["a"][:-20])
    tasks.scan()
    assert tasks.get("one") is running
    assert "damaged" in tasks.errors["one"]
    assert events[-1][1]["consequence"] == "the task served so far stays"
    assert tasks.describe()["refused"][0]["name"] == "one"
    path.write_bytes(files["b"])
    tasks.scan()
    assert not tasks.errors
    assert tasks.get("one").task.labels == tiny_server.LABELS["b"]


def test_uploads_survive_a_new_start(watched, bert_tasks):
    tasks, folder, files, _ = watched
    tasks.put("spam", files["a"])
    with pytest.raises(DeltaError, match="task 'spam': the delta is damaged"):
        tasks.put("spam", files["b"][:-1])
    assert (folder / "spam.safetensors").read_bytes() == files["a"]
    assert [path.name for path in folder.iterdir()] == ["spam.safetensors"]
    again, engine = tiny_server.parts(bert_tasks[0], folder)
    again.scan()
    assert names(again) == ["spam"]
    engine.close()
    assert tasks.remove("spam") == ["spam"]
    assert not list(folder.iterdir())
    with pytest.raises(UnknownTask, match="no task file 'spam'"):
        tasks.remove("spam")


def test_without_a_folder_uploads_are_in_memory(served, bert_tasks):
    tasks, _ = served
    tasks.put("d", bert_tasks[2]["a"].read_bytes())
    assert names(tasks) == ["a", "b", "d", "r"]
    tasks.remove("d")
    tasks.scan()
    assert names(tasks) == ["a", "b", "r"]


def test_each_head_of_a_file_is_a_task(watched, bert_tasks):
    from taskedge.backbone.loading import load_base

    tasks, folder, files, _ = watched
    base = load_base("text-classification", bert_tasks[0], ("x", "y"), keep_head=True).model
    both = te.combine([bert_tasks[1]["a"], bert_tasks[1]["b"]], base, names=["a", "b"])
    path = te.save(both, folder / "both.safetensors")
    tasks.scan()
    assert names(tasks) == ["both.a", "both.b"]
    with pytest.raises(DeltaError, match=r"a task 'both\.a' from another file"):
        tasks.put("both.a", files["a"])
    path.unlink()
    tasks.scan()
    assert names(tasks) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a b", "ü"])
def test_names_that_are_no_names(served, bert_tasks, name):
    with pytest.raises(DeltaError, match="a name has 1 to 64"):
        served[0].put(name, bert_tasks[2]["a"].read_bytes())


def test_an_unknown_task_and_a_missing_file(served, tmp_path):
    with pytest.raises(UnknownTask, match="no task 'aa'"):
        served[0].get("aa")
    with pytest.raises((DeltaError, InputError), match="cannot be read"):
        served[0].add("x", tmp_path / "missing")


def test_leftovers_of_killed_uploads_are_removed(tmp_path):
    old, young, other = (tmp_path / name for name in (".a.safetensors.x1", ".b.safetensors.x2", "c.safetensors"))
    for path in (old, young, other):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    assert remove_leftovers(tmp_path) == [old.name]
    assert young.exists()
    assert other.exists()
