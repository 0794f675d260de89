"""The task that coordinator and devices share, for every kind of task, by whole runs over links in memory."""

import asyncio

import pytest
import tiny_fleet
import tiny_task
import torch
from generated_dialogues import generated_dialogues, write_dialogues

from taskedge.backbone.fingerprint import base_digest
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.fleet.split_data import write_parts
from taskedge.cooperation.joint_task import TaskSpec, joint_task, read_table_like
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink
from taskedge.delta.file import save
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
    write_dialogues(folder / "dialogues.jsonl", generated_dialogues(2, held_out=0))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "data"), [("bert", "train.csv"), ("vit", "photos"), ("gpt2", "chats.csv")], ids=["text", "image", "lm"]
)
def test_a_run_of_every_kind(kinds, tmp_path, model, data):
    """From one table to a delta that is measured on it, through the parts that devices read."""
    joint = joint_task(TaskSpec(str(kinds / model), kinds / data), quiet)
    names = ["a", "b"]
    columns = write_parts(joint, tmp_path / "parts", names, skew=False, seed=0, must_match=False)
    settings = tiny_fleet.settings(rounds=2, devices=2, step="activation")

    async def run():
        hub = MemoryCoordinatorLink()
        serving = []
        for name in names:
            about = TaskSpec(
                str(kinds / model),
                tmp_path / "parts" / f"{name}.jsonl",
                columns,
                task=joint.task.name,
                classes=joint.labels,
                seed=9,
            )
            mine = joint_task(about, quiet)
            device = Device(hub.device(name), mine.local_training(min_rows=1), labels=mine.labels)
            serving.append(asyncio.create_task(device.serve()))
        head = Coordinator(
            hub,
            joint.base.model,
            settings,
            tmp_path / "run",
            full_parameters=joint.full_parameters,
            labels=joint.labels,
            table=joint.block_table(),
        )
        result = await head.run()
        await asyncio.gather(*serving)
        return head, result

    head, result = asyncio.run(run())
    assert result.version == 2
    out = save(joint.with_run_provenance(head.delta(), {"rounds": 2}), tmp_path / "delta.safetensors")
    measured = joint.evaluate(out, read_table_like(joint, kinds / data, quiet), 8)
    assert measured["rows"] == len(joint.table)
    assert measured["loss"] > 0


@pytest.mark.parametrize(
    ("data", "more", "reason"),
    [
        ("one.csv", {}, "every row has the label 'pos'.*name all with --class"),
        ("train.csv", {"classes": ("pos", "neu")}, "row 1: the label 'neg' does not occur"),
        ("train.csv", {"classes": ("pos",)}, "name at least two"),
        ("ratings.csv", {}, "text-regression cannot be trained by several devices"),
        ("chats.csv", {"classes": ("a", "b")}, "--class means nothing for text-generation"),
        ("dialogues.jsonl", {}, "dialogue-state cannot be trained by several devices"),
        (None, {}, "name the classes with --class, or a table with --eval"),
    ],
)
def test_a_task_that_devices_cannot_share_is_refused_before_a_model_is_loaded(kinds, data, more, reason):
    with pytest.raises(InputError, match=reason):
        joint_task(TaskSpec("nowhere", kinds / data if data else None, **more), quiet)


def test_classes_are_those_of_the_run_not_of_the_data(kinds):
    named = ("neg", "neutral", "pos")
    device = joint_task(TaskSpec(str(kinds / "bert"), kinds / "one.csv", classes=named), quiet)
    assert device.labels == named
    assert {row["labels"] for row in device.rows} == {2}
    head = joint_task(TaskSpec(str(kinds / "bert"), None, Columns(text=("review",)), classes=named), quiet)
    assert (head.labels, head.table) == (named, None)


def test_all_sides_have_the_same_base_whatever_its_own_head(tmp_path):
    """The base's digest leaves the head out, and an own head comes in the order of the run's classes on every side."""
    data = tiny_task.table(tmp_path / "train.csv", tiny_task.rows(8))
    for name, classes, head in (("named", ("POS", "NEG"), "base"), ("bare", ("LABEL_0", "LABEL_1"), "new")):
        base = tiny_task.bert(tmp_path / name, classes=2, id2label=dict(enumerate(classes)))
        coordinator = joint_task(TaskSpec(str(base), classes=("neg", "pos"), task="text-classification"), quiet)
        device = joint_task(TaskSpec(str(base), data, seed=9), quiet)
        assert (coordinator.base.head, device.base.head) == (head, head)
        assert coordinator.full_parameters == device.full_parameters == ["classifier.weight", "classifier.bias"]
        digests = {base_digest(side.base.model, side.full_parameters) for side in (coordinator, device)}
        assert len(digests) == 1
        weights = [side.base.model.classifier.weight for side in (coordinator, device)]
        assert torch.equal(*weights) == (head == "base")


def test_a_device_says_how_many_texts_are_cut(kinds):
    said = []
    joint = joint_task(TaskSpec(str(kinds / "bert"), kinds / "train.csv", max_length=6), said.append)
    assert len(joint.rows) == len(joint.rows) == 32
    assert len([line for line in said if "of 32 rows have more than 6 tokens and are cut at their end: " in line]) == 1
    with pytest.raises(InputError, match="--max-length 2 leaves no token of a text"):
        joint_task(TaskSpec(str(kinds / "bert"), kinds / "train.csv", max_length=2), str)
