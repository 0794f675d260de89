"""The task follows from the columns that the user names and those of the file; other cases are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.errors import InputError, UnknownName
from taskedge.training.data.infer_task import InferredTask, infer_task, task_of_labels, task_sentence
from taskedge.training.data.table import Table
from taskedge.training.tasks import TASKS, Columns

CLASSES, NUMBERS, IMAGES, WORDS = "text-classification", "text-regression", "image-classification", "text-generation"
SETS = "multi-label-classification"


@pytest.fixture
def file(tmp_path):
    def write(*header):
        path = tmp_path / "rows.csv"
        path.write_text(",".join(header) + "\n" + ",".join("x" for _ in header) + "\n")
        return path

    return write


@pytest.mark.parametrize(
    ("header", "asked", "task", "columns"),
    [
        (["text", "label"], {}, CLASSES, {"text": ["text"], "label": "label"}),
        (["text", "id"], {}, WORDS, {"text": ["text"]}),
        (["prompt", "response"], {}, WORDS, {"prompt": "prompt", "response": "response"}),
        (["image", "label"], {}, IMAGES, {"image": "image", "label": "label"}),
        (["text", "label", "prompt", "response"], {}, WORDS, {"prompt": "prompt", "response": "response"}),
        (["text", "label", "image"], {}, IMAGES, {"image": "image", "label": "label"}),
        (["text", "label", "image"], {"text": ["text"]}, CLASSES, {"text": ["text"], "label": "label"}),
        (["a", "b"], {"text": ["a"], "label": "b"}, CLASSES, {"text": ["a"], "label": "b"}),
        (["a", "b"], {"text": ["a", "b"]}, WORDS, {"text": ["a", "b"]}),
        (["a", "label"], {"text": ["a"]}, CLASSES, {"text": ["a"], "label": "label"}),
        (["text", "b"], {"label": "b"}, CLASSES, {"text": ["text"], "label": "b"}),
        (["image", "b"], {"label": "b"}, IMAGES, {"image": "image", "label": "b"}),
        (["a", "label"], {"image": "a"}, IMAGES, {"image": "a", "label": "label"}),
        (["a", "response"], {"prompt": "a"}, WORDS, {"prompt": "a", "response": "response"}),
        (["prompt", "b", "text"], {"response": "b"}, WORDS, {"prompt": "prompt", "response": "b"}),
        (["id", "turns"], {}, "dialogue-state", {"turns": "turns"}),
        (["turns", "text"], {}, WORDS, {"text": ["text"]}),
        (["messages"], {}, WORDS, {"prompt": "prompt", "response": "response"}),
        (["messages", "text"], {}, WORDS, {"text": ["text"]}),
        (["talk", "text", "label"], {"messages": "talk"}, WORDS, {"messages": "talk"}),
    ],
)
def test_what_is_named_and_what_is_there(file, header, asked, task, columns):
    found = infer_task(file(*header), Columns.of(asked))
    assert (found.task, found.columns.named) == (task, columns)
    assert found.depends_on_labels == (task == CLASSES)
    assert Columns.of(found.columns.named) == found.columns


@pytest.mark.parametrize(
    ("header", "asked", "task", "columns"),
    [
        (["text", "label"], {}, NUMBERS, {"text": ["text"], "label": "label"}),
        (["text", "label"], {}, WORDS, {"text": ["text"]}),
        (["text", "label", "image"], {}, CLASSES, {"text": ["text"], "label": "label"}),
        (["text", "label"], {"prompt": "text", "response": "label"}, WORDS, {"prompt": "text", "response": "label"}),
    ],
)
def test_the_user_has_the_last_word(file, header, asked, task, columns):
    found = infer_task(file(*header), Columns.of(asked), task)
    assert (found.task, found.columns.named, found.depends_on_labels) == (task, columns, False)


@pytest.mark.parametrize(
    ("header", "asked", "task", "told"),
    [
        (
            ["a", "b"],
            {},
            None,
            "say what to learn from: --image and --label, or --prompt and --response, or --text and",
        ),
        (["a", "b"], {}, None, "or --text, or --messages, or --turns \\(columns: 'a', 'b'\\)"),
        (["a", "b"], {"label": "b"}, None, "from: --image and --label, or --text and --label \\(columns: 'a', 'b'\\)"),
        (["a", "b"], {"prompt": "a"}, None, "say what to learn from: --prompt and --response \\(columns"),
        (["a", "b"], {"text": ["a"]}, CLASSES, "say what to learn from: --text and --label \\(columns"),
        (
            ["a", "b"],
            {"image": "a", "text": ["b"]},
            None,
            "no kind of task reads --text and --image together: name --im",
        ),
        (
            ["a", "b"],
            {"text": ["a"], "label": "b"},
            WORDS,
            "text-generation reads --text and --label together: name --p",
        ),
        (["a", "b"], {"text": ["a"], "label": "b"}, "text-clasification", "unknown task"),
    ],
)
def test_what_cannot_be(file, header, asked, task, told):
    with pytest.raises(InputError, match=told):
        infer_task(file(*header), Columns.of(asked), task)


def test_a_folder_holds_images(tmp_path):
    assert infer_task(tmp_path, Columns()) == InferredTask(IMAGES, Columns())
    assert infer_task(tmp_path, Columns(), IMAGES) == InferredTask(IMAGES, Columns())
    with pytest.raises(InputError, match="is a folder, which is read as images; for text-regression name a file"):
        infer_task(tmp_path, Columns(), NUMBERS)
    with pytest.raises(InputError, match="has no columns: leave out --label"):
        infer_task(tmp_path, Columns(label="label"))
    with pytest.raises(UnknownName):
        infer_task(tmp_path / "x.csv", Columns(), "painting")


def test_complete_columns_are_not_looked_for(tmp_path):
    """The reader reports a fault of the file later."""
    for asked in ({"text": ["a"], "label": "b"}, {"image": "a", "label": "b"}, {"prompt": "a", "response": "b"}):
        infer_task(tmp_path / "none.csv", Columns.of(asked))
    with pytest.raises(InputError, match=r"no file .*none\.csv"):
        infer_task(tmp_path / "none.csv", Columns.of({"text": ["a"]}))


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (["1", "2", "0"], CLASSES),
        (["1.0", "2.0"], CLASSES),
        (["1.5", "2"], NUMBERS),
        (["-1e-3", "+.5", " 2. "], NUMBERS),
        (["1.5", "good"], CLASSES),
        (["1.5", "nan"], CLASSES),
        (["1.5", "1e999"], CLASSES),
        (["0.5", "1_0"], CLASSES),
    ],
)
def test_fractions_make_numbers_of_labels(labels, task):
    assert task_of_labels(Table(Path("x"), labels, labels)) == task


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_any_numbers(values):
    labels = [repr(value) for value in values]
    expected = NUMBERS if any(value != int(value) for value in values) else CLASSES
    assert task_of_labels(Table(Path("x"), labels, labels)) == expected


def test_what_is_said(file, tmp_path):
    path = file("text", "label")
    found = infer_task(path, Columns())
    assert task_sentence(found, path, CLASSES) == "task: text-classification, from text 'text' and label 'label'"
    assert task_sentence(found, path, NUMBERS).endswith("fractions: --task text-classification takes them as classes")
    found = infer_task(path, Columns(text=("text", "label")))
    assert task_sentence(found, path, WORDS) == "task: text-generation, from text 'text' + 'label'"
    assert task_sentence(infer_task(tmp_path, Columns()), tmp_path, IMAGES).endswith(
        "a folder of images for each class"
    )


def test_several_label_columns_or_a_separator_are_sets(file):
    path = file("text", "label", "toxic", "rude")
    for wanted in (
        Columns(label="toxic,rude"),
        Columns.of({"label": ["toxic", "rude"]}),
        Columns(labels=("toxic,rude",)),
    ):
        found = infer_task(path, wanted)
        assert (found.task, found.columns) == (SETS, Columns(text=("text",), labels=("toxic", "rude")))
    assert task_sentence(found, path, SETS).endswith("from text 'text' and labels 'toxic' + 'rude'")
    found = infer_task(path, Columns(label="toxic", label_separator=";"))
    assert (found.task, found.columns.label_separator) == (SETS, ";")
    assert infer_task(path, Columns(), SETS).columns == Columns(text=("text",), label="label", label_separator=",")
    assert Columns.of(found.columns.named) == found.columns
    assert infer_task(path, Columns()).task == CLASSES
    with pytest.raises(InputError, match="--label-separator is for one column"):
        infer_task(path, Columns(label="toxic", label_separator=";"), CLASSES)
    with pytest.raises(InputError, match="text-classification reads --label twice or more together: name --text"):
        infer_task(path, Columns(label="toxic,rude"), CLASSES)


def test_every_kind_has_a_loader():
    from taskedge.backbone.loading import TASK_AUTO_CLASSES

    assert set(TASKS) == set(TASK_AUTO_CLASSES)
    assert all(TASKS[name].name == name for name in TASKS)
