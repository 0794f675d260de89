"""Known shapes have the published sizes, and weights are loaded where there are any."""

from __future__ import annotations

import json

import pytest
import tiny_task
import torch

from taskedge.backbone.shapes import KIND_AUTO_CLASSES, SHAPES, known_shape, load_config, shape_of
from taskedge.errors import InputError, UnknownName

PARAMETERS = {
    "minilm-l6": ("encoder", 22_713_216 + 2 * 385),  # and a classifier of two classes
    "smollm2-135m": ("causal LM", 134_515_008),
    "t5-small": ("seq2seq", 60_506_624),
}


def test_there_is_one_of_each_kind():
    assert {known_shape(name).kind for name in SHAPES} == set(KIND_AUTO_CLASSES)
    assert SHAPES.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_the_sizes_that_they_are_known_for(name):
    shape = known_shape(name)
    skeleton = shape.skeleton()
    assert (shape.kind, sum(p.numel() for p in skeleton.parameters())) == PARAMETERS[name]
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}


def test_a_name_that_is_not_known():
    with pytest.raises(UnknownName, match="did you mean 'minilm-l6'"):
        known_shape("minilm")


@pytest.mark.parametrize(
    ("make", "kind"), [(tiny_task.bert, "encoder"), (tiny_task.gpt2_lm, "causal LM"), (tiny_task.llama, "causal LM")]
)
def test_the_weights_of_a_folder_are_used(tmp_path, make, kind):
    shape, said = shape_of(str(make(tmp_path / "it"))), []
    model, own = shape.load(said.append)
    assert (shape.name, shape.kind, own, said) == ("it", kind, True, [])
    again, _ = shape.load(said.append)
    name = next(name for name, p in model.named_parameters() if p.dim() == 2)
    assert torch.equal(model.get_parameter(name), again.get_parameter(name))


def test_random_ones_where_there_are_none(tmp_path):
    folder, said = tiny_task.bert(tmp_path / "it"), []
    (folder / "model.safetensors").unlink()
    model, own = shape_of(str(folder)).load(said.append)
    assert not own
    assert said[0].startswith("it: no weights can be loaded, so they are random")
    assert all(p.isfinite().all() for p in model.parameters())
    model, own = known_shape("minilm-l6").load(said.append)
    assert (own, len(said), next(model.parameters()).device.type) == (False, 1, "cpu")


@pytest.mark.slow
def test_unknown_names_and_unknown_architectures(tmp_path):
    with pytest.raises(InputError, match="nothere: no such folder: name a local model folder or a hub id such as"):
        shape_of(str(tmp_path / "nothere"))
    with pytest.raises(InputError, match=r"the folder holds no model: it has no config\.json"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no config that can be used: Unrecognized model"):
        load_config(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    shape = shape_of(str(tmp_path))
    with pytest.raises(InputError, match="has no form as encoder"):
        shape.skeleton()
