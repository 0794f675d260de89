"""What coordinator and devices agree on, for every kind of task, by whole runs over links in memory."""

import asyncio
import json

import pytest
import tiny_fleet
import tiny_task

from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.fleet.split_data import write_parts
from taskedge.cooperation.joint_task import Asked, joint_task, read_like
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink
from taskedge.errors import InputError
from taskedge.training.tasks import Columns


def quiet(_):
    pass


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    tiny_task.bert(folder / "bert")
    tiny_task.gpt2_lm(folder / "gpt2")
    tiny_task.vit(folder / "vit")
    tiny_task.images(folder / "photos", 16)
    tiny_task.table(folder / "train.csv", tiny_task.rows(32))
    tiny_task.table(folder / "one.csv", [("good", "pos"), ("fine", "pos")])
    tiny_task.table(folder / "ratings.csv", tiny_task.ratings(8))
    tiny_task.table(folder / "chats.csv", tiny_task.dialogs(16), ("prompt", "response"))
    return folder


@pytest.mark.parametrize(
    ("model", "data"), [("bert", "train.csv"), ("vit", "photos"), ("gpt2", "chats.csv")], ids=["text", "image", "lm"]
)
def test_a_run_of_every_kind(kinds, tmp_path, model, data):
    """From one table to a delta that is measured on it, through the parts that devices read."""
    whole = joint_task(Asked(str(kinds / model), kinds / data), quiet)
    names = ["a", "b"]
    columns = write_parts(whole, tmp_path / "parts", names, skew=False, seed=0, same=False)
    settings = tiny_fleet.settings(rounds=2, devices=2, step="activation")

    async def run():
        hub = MemoryCoordinatorLink()
        serving = []
        for name in names:
            about = Asked(
                str(kinds / model),
                tmp_path / "parts" / f"{name}.jsonl",
                columns,
                task=whole.task.name,
                classes=whole.labels,
                seed=9,
            )
            mine = joint_task(about, quiet)
            device = Device(hub.device(name), mine.training(), labels=mine.labels)
            serving.append(asyncio.create_task(device.serve()))
        head = Coordinator(
            hub,
            whole.base.model,
            settings,
            tmp_path / "run",
            whole=whole.whole,
            labels=whole.labels,
            table=whole.costs(),
        )
        result = await head.run()
        await asyncio.gather(*serving)
        return head, result

    head, result = asyncio.run(run())
    assert result.version == 2
    out = whole.told(head.delta(), {"rounds": 2}).save(tmp_path / "delta.safetensors")
    measured = whole.evaluate(out, read_like(whole, kinds / data, quiet), 8)
    assert measured["rows"] == len(whole.table)
    assert measured["loss"] > 0


def test_parts_hold_each_row_once(kinds, tmp_path):
    whole = joint_task(Asked(str(kinds / "bert"), kinds / "train.csv"), quiet)
    write_parts(whole, tmp_path / "parts", ["a", "b", "c"], skew=True, seed=0, same=False)
    parts = [json.loads(line) for path in (tmp_path / "parts").iterdir() for line in path.read_text().splitlines()]
    assert sorted((row["text"], row["label"]) for row in parts) == sorted(tiny_task.rows(32))
    write_parts(whole, tmp_path / "parts", ["a", "b", "c"], skew=True, seed=0, same=True)
    with pytest.raises(InputError, match="not what it was"):
        write_parts(whole, tmp_path / "parts", ["a", "b", "c"], skew=True, seed=1, same=True)


@pytest.mark.parametrize(
    ("data", "more", "told"),
    [
        ("one.csv", {}, "every row has the label 'pos'.*name all with --class"),
        ("train.csv", {"classes": ("pos", "neu")}, "row 1: the label 'neg' does not occur"),
        ("train.csv", {"classes": ("pos",)}, "name at least two"),
        ("ratings.csv", {}, "text-regression cannot be trained by several devices"),
        ("chats.csv", {"classes": ("a", "b")}, "--class means nothing for text-generation"),
        (None, {}, "name the classes with --class, or a table with --eval"),
    ],
)
def test_what_cannot_be_trained_together_is_refused_before_a_model_is_loaded(kinds, data, more, told):
    with pytest.raises(InputError, match=told):
        joint_task(Asked("nowhere", kinds / data if data else None, **more), quiet)


def test_classes_are_the_runs_and_not_the_datas(kinds):
    named = ("neg", "neutral", "pos")
    device = joint_task(Asked(str(kinds / "bert"), kinds / "one.csv", classes=named), quiet)
    assert device.labels == named
    assert {row["labels"] for row in device.rows} == {2}
    head = joint_task(Asked(str(kinds / "bert"), None, Columns(text=("review",)), classes=named), quiet)
    assert (head.labels, head.table) == (named, None)
