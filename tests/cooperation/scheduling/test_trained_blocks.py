"""Every trained parameter belongs to one block."""

import pytest
import tiny
import tiny_fleet

import taskedge as te
from taskedge.cooperation.scheduling.trained_blocks import HEAD, trained_blocks
from taskedge.errors import InputError


def installed(**more):
    made = tiny_fleet.model(layers=4)
    return te.install(made, te.select(made, rule="magnitude", per_neuron=1), **more)


def test_every_trained_parameter_is_in_one_block_counted_from_the_loss():
    model = installed()
    blocks = trained_blocks(model)
    assert len(blocks) == 4
    assert sorted(blocks.names_in(range(5))) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert all(name.startswith("bert.encoder.layer.3.") for name in blocks.names[1])
    assert all(name.startswith("bert.encoder.layer.0.") for name in blocks.names[4])
    assert blocks.names[HEAD] == ("classifier.weight", "classifier.bias")
    assert {blocks.block_of()[name] for name in blocks.names_in([2])} == {2}


def test_layers_can_be_merged_from_the_loss_down():
    blocks = trained_blocks(installed(), [3, 1])
    assert [{name.split(".")[3] for name in names} for names in blocks.names[1:]] == [{"1", "2", "3"}, {"0"}]
    with pytest.raises(InputError, match=r"\[3, 2\] layers do not make up the model's 4"):
        trained_blocks(installed(), [3, 2])


def test_parameters_before_the_layers_are_in_the_deepest_block_and_those_behind_in_the_head():
    blocks = trained_blocks(installed(trainable=["classifier", "bert.embeddings.LayerNorm", "bert.pooler"]))
    assert {"bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"} <= set(blocks.names[4])
    assert set(blocks.names[HEAD]) == {
        f"{n}.{w}" for n in ("classifier", "bert.pooler.dense") for w in ("weight", "bias")
    }


def test_a_model_without_layers_is_refused():
    with pytest.raises(InputError, match="no repeated layers"):
        trained_blocks(tiny.mlp())


def test_blocks_restricted_to_some_names_keep_the_head():
    blocks = trained_blocks(installed())
    chosen = {blocks.names[1][0], blocks.names[3][1]}
    restricted = blocks.restricted_to(chosen)
    assert restricted.names == (blocks.names[HEAD], blocks.names[1][:1], (), blocks.names[3][1:2], ())
