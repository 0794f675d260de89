"""A delta put to use on the base that it names, or on another that is given."""

from __future__ import annotations

import shutil

import pytest
import tiny_task
import torch

from taskedge.backbone.storage.frozen_layer import HeldLayer
from taskedge.delta.file import load
from taskedge.delta.load_with_delta import load_applied
from taskedge.errors import BaseMismatch, DeltaError, InputError
from taskedge.training.config_file import settle
from taskedge.training.tune import tune


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with models, data and a delta, which names its base by its whole path."""
    folder = tiny_task.folder_of_a_task(tmp_path_factory.mktemp("use"))
    flags = {"model": str(folder / "base"), "train": folder / "train.csv", "text": ["text"], "label": "label"}
    settings = settle({**flags, "budget": "2%", "epochs": 1, "batch_size": 8, "out": folder / "task.safetensors"})
    tune(settings, progress=False, say=str)
    return folder


def test_the_base_holds_the_values_of_the_delta(made):
    base, delta = load_applied(made / "task.safetensors")
    assert delta.provenance.base == str(made / "base")
    for name, linear in delta.linears.items():
        weight = base.model.get_submodule(name).weight
        assert torch.equal(weight[linear.rows, linear.columns], linear.values)
    for name, tensor in delta.whole.items():
        assert torch.equal(dict(base.model.named_parameters())[name], tensor)
    assert base.model.config.id2label == {0: "neg", 1: "pos"}


def test_a_base_that_moved(made, tmp_path):
    moved = shutil.copytree(made / "base", tmp_path / "moved")
    path = tmp_path / "o"
    load(made / "task.safetensors").with_provenance(base=str(tmp_path / "gone")).save(path)
    with pytest.raises(InputError, match=r"no such folder.*names it as its base: say where that is with --model"):
        load_applied(path)
    load_applied(path, str(moved))
    with pytest.raises(InputError) as caught:
        load_applied(path, str(tmp_path / "nowhere"))
    assert "as its base" not in str(caught.value)


def test_a_wrong_base_is_refused_unless_forced(made):
    with pytest.raises(BaseMismatch, match="wrong base"):
        load_applied(made / "task.safetensors", str(made / "other"))
    base, delta = load_applied(made / "task.safetensors", str(made / "other"), force=True)
    assert set(delta.whole) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(base.model.classifier.bias, delta.whole["classifier.bias"])
    with pytest.raises(BaseMismatch, match="no linear"):
        load_applied(made / "task.safetensors", str(made / "gpt2"), force=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": ()}, "names no labels"),
        ({"base": ""}, "does not name its base: give it with"),
        ({"task": ""}, "names no task that is known"),
    ],
)
def test_a_delta_that_says_too_little(made, tmp_path, changes, told):
    load(made / "task.safetensors").with_provenance(**changes).save(tmp_path / "o")
    with pytest.raises(InputError, match=told):
        load_applied(tmp_path / "o")


def test_no_delta(made):
    with pytest.raises(DeltaError):
        load_applied(made / "train.csv")
    with pytest.raises(DeltaError, match="not a delta"):
        load_applied(made / "base" / "model.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_applied(made / "nothere")


def test_a_base_that_is_held(made):
    """Checked as it was trained on, then held; an explicit way wins over that of the training."""
    path = made / "task.safetensors"
    base, delta = load_applied(path, held="int8")
    name, linear = next(iter(delta.linears.items()))
    layer = base.model.get_submodule(name)
    assert isinstance(layer, HeldLayer)
    assert torch.equal(layer.weight[linear.rows, linear.columns], linear.values)
    assert not isinstance(load_applied(path)[0].model.get_submodule(name), HeldLayer)
    with pytest.raises(BaseMismatch, match="wrong base"):
        load_applied(path, str(made / "other"), held="int8")
    load_applied(path, str(made / "other"), held="int8", force=True)


def test_a_delta_is_used_as_it_was_trained(made, tmp_path):
    flags = {"model": str(made / "base"), "train": made / "train.csv", "text": ["text"], "label": "label"}
    settings = settle({**flags, "budget": "2%", "epochs": 1, "base": "int8", "out": tmp_path / "task.safetensors"})
    tune(settings, progress=False, say=str)
    for held, expected in ((None, True), ("loaded", False)):
        base, delta = load_applied(tmp_path / "task.safetensors", held=held)
        assert {isinstance(base.model.get_submodule(name), HeldLayer) for name in delta.linears} == {expected}
    with pytest.raises(BaseMismatch, match="wrong base"):
        load_applied(tmp_path / "task.safetensors", str(made / "other"))
