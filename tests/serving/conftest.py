"""A base with three tasks of different kinds, made once; tests only read the files."""

from __future__ import annotations

import pytest
import tiny_server
import tiny_task

import taskedge as te


@pytest.fixture(scope="session")
def bert_tasks(tmp_path_factory):
    """Return (folder of the base, deltas by name, their files by name)."""
    root = tmp_path_factory.mktemp("bert")
    return _tasks(root, "bert", {"a": "text-classification", "b": "text-classification", "r": "text-regression"})


@pytest.fixture(scope="session")
def gpt2_tasks(tmp_path_factory):
    """The same for a language model, with two tasks that generate and one that classifies."""
    root = tmp_path_factory.mktemp("gpt2")
    return _tasks(root, "gpt2", {"g": "text-generation", "h": "text-generation", "b": "text-classification"})


@pytest.fixture(scope="session")
def vit_tasks(tmp_path_factory):
    """The same for a model of images."""
    root = tmp_path_factory.mktemp("vit")
    tiny_task.images(root / "images", 4)
    return _tasks(root, "vit", {"a": "image-classification", "b": "image-classification"})


@pytest.fixture(scope="session")
def t5_tasks(tmp_path_factory):
    """The same for an encoder-decoder, with two tasks that write targets."""
    return _tasks(tmp_path_factory.mktemp("t5"), "t5", {"s": "text-to-text", "t": "text-to-text"}, size=3.0)


@pytest.fixture(scope="session")
def set_tasks(tmp_path_factory):
    """The same for an encoder, with a task of sets of labels and one of classes."""
    kinds = {"a": "multi-label-classification", "b": "text-classification"}
    return _tasks(tmp_path_factory.mktemp("sets"), "bert", kinds)


@pytest.fixture(scope="session")
def tag_tasks(tmp_path_factory):
    """The same for an encoder, with two tasks that tag tokens and one that classifies texts."""
    kinds = {"a": "token-classification", "b": "token-classification", "c": "text-classification"}
    return _tasks(tmp_path_factory.mktemp("tags"), "bert", kinds)


def _tasks(root, kind, tasks, size=0.3):
    folder = tiny_server.base_folder(kind, next(iter(tasks.values())), root / "base")
    deltas = {}
    for seed, (name, task) in enumerate(tasks.items()):
        labels = tiny_server.LABELS[name] if task.endswith("classification") else ()
        deltas[name] = tiny_server.delta_of(kind, task, folder, seed, labels, size=size)
    files = {name: te.save(delta, root / f"{name}.safetensors") for name, delta in deltas.items()}
    return folder, deltas, files


@pytest.fixture
def served(bert_tasks):
    """The tasks of ``bert_tasks`` in a server's parts: (tasks, engine)."""
    folder, _, files = bert_tasks
    tasks, engine = tiny_server.parts(folder)
    for name, path in files.items():
        tasks.add(name, path)
    yield tasks, engine
    engine.close()
