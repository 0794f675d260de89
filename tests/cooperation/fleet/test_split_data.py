"""One table split among devices: each row on one device, in parts as even as possible."""

import json

import pytest
import tiny_task
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.fleet.split_data import split_rows, write_parts
from taskedge.cooperation.joint_task import TaskSpec, joint_task
from taskedge.errors import InputError


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 12), st.booleans(), st.integers(0, 9))
def test_every_row_is_on_exactly_one_device(labels, devices, skew, seed):
    if len(labels) < devices:
        with pytest.raises(InputError, match="ask for fewer"):
            split_rows(labels, len(labels), devices, skew=skew, seed=seed)
        return
    parts = split_rows(labels, len(labels), devices, skew=skew, seed=seed)
    assert sorted(index for part in parts for index in part) == list(range(len(labels)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == split_rows(labels, len(labels), devices, skew=skew, seed=seed)
    if skew:
        order = [labels[index] for part in parts for index in part]
        assert order == sorted(order)


def test_a_skewed_split_separates_the_classes():
    labels = ["a", "b"] * 50
    assert [{labels[p] for p in part} for part in split_rows(labels, 100, 2, skew=True, seed=0)] == [{"a"}, {"b"}]
    assert [{labels[p] for p in part} for part in split_rows(labels, 100, 2, skew=False, seed=0)] == [{"a", "b"}] * 2
    assert split_rows(labels, 100, 2, skew=False, seed=0) != split_rows(labels, 100, 2, skew=False, seed=1)


def test_data_without_classes_cannot_be_skewed():
    with pytest.raises(InputError, match="no classes"):
        split_rows(None, 9, 2, skew=True, seed=0)


def test_the_files_have_each_row_once_and_stay_the_same(tmp_path):
    tiny_task.bert(tmp_path / "bert")
    tiny_task.table(tmp_path / "train.csv", tiny_task.rows(32))
    joint = joint_task(TaskSpec(str(tmp_path / "bert"), tmp_path / "train.csv"), lambda line: None)
    write_parts(joint, tmp_path / "parts", ["a", "b", "c"], skew=True, seed=0, must_match=False)
    parts = [json.loads(line) for path in (tmp_path / "parts").iterdir() for line in path.read_text().splitlines()]
    assert sorted((row["text"], row["label"]) for row in parts) == sorted(tiny_task.rows(32))
    write_parts(joint, tmp_path / "parts", ["a", "b", "c"], skew=True, seed=0, must_match=True)
    with pytest.raises(InputError, match="differs from that of the interrupted run"):
        write_parts(joint, tmp_path / "parts", ["a", "b", "c"], skew=True, seed=1, must_match=True)
