"""Blocks are found by structure: the members of an outermost list of modules of one class."""

import tiny
from torch import nn

from taskedge.backbone.blocks import blocks


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))])


def test_the_layers_of_transformers_are_found_with_their_depth_from_the_output():
    model = tiny.bert()
    found = blocks(model)
    assert [(block.name, block.depth) for block in found] == [("bert.encoder.layer.0", 2), ("bert.encoder.layer.1", 1)]
    assert all(block.module is model.get_submodule(block.name) for block in found)
    assert [block.name for block in blocks(tiny.gpt2())] == ["transformer.h.0", "transformer.h.1"]
    assert [block.depth for block in blocks(tiny.vit())] == [2, 1]


def test_a_plain_module_has_none():
    assert blocks(tiny.mlp()) == []
    assert blocks(nn.Linear(2, 2)) == []


def test_only_the_outermost_list_counts():
    model = nn.Module()
    model.layers = nn.ModuleList([Layer(), Layer(), Layer()])
    assert [block.name for block in blocks(model)] == ["layers.0", "layers.1", "layers.2"]


def test_two_lists_follow_one_another():
    model = nn.Module()
    model.encoder, model.decoder = nn.ModuleList([Layer(), Layer()]), nn.Sequential(Layer(), Layer())
    assert [(block.name, block.depth) for block in blocks(model)] == [
        ("encoder.0", 4),
        ("encoder.1", 3),
        ("decoder.0", 2),
        ("decoder.1", 1),
    ]


def test_lists_that_are_no_repetition_are_passed_over():
    leaves = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))  # members without modules of their own
    mixed = nn.Sequential(Layer(), nn.Sequential(nn.Linear(2, 2)))
    alone = nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])
    for module in (leaves, alone):
        model = nn.Module()
        model.part = module
        assert blocks(model) == []
    model = nn.Module()
    model.part = mixed
    assert [block.name for block in blocks(model)] == ["part.0.inner.0", "part.0.inner.1"]
