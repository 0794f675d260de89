"""Installing gates on layers: which layers, whose norms, and what is refused before the model changes."""

from __future__ import annotations

import pytest
import tiny
import torch

import taskedge as te
from taskedge.errors import InputError
from taskedge.forms.install import installation
from taskedge.forms.install_taps import install_taps, taps_support, whole_layers
from taskedge.forms.norms import norm_parameters, norm_statistics
from taskedge.forms.taps import layer_gates, taps_layers
from taskedge.selection.support import Support


def test_every_linear_and_convolution_of_the_blocks_gets_a_gate():
    support = taps_support(tiny.bert())
    assert len(whole_layers(support)) == 12
    assert support.parameters == 4096
    convolutions = whole_layers(taps_support(tiny.resnet()))
    assert len(convolutions) == 7
    assert all("convolution" in name for name in convolutions)
    nearest = whole_layers(taps_support(tiny.bert(), depth=1))
    assert len(nearest) == 6
    assert all(".layer.1." in name for name in nearest)


def test_only_gates_changes_and_the_head_train():
    model = install_taps(tiny.bert(), taps_support(tiny.bert()))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    gates = {f"{name}.taps_gate.score" for name in taps_layers(model)}
    changes = {f"{name}.taps_change" for name in taps_layers(model)}
    assert trained == gates | changes | {"classifier.weight", "classifier.bias"}
    assert list(layer_gates(model)) == whole_layers(installation(model).support)


def test_norms_of_the_task_travel_with_the_delta(tmp_path):
    """Weights, biases and running statistics: the base with the delta computes what was trained, and is restored."""
    model = install_taps(tiny.resnet(), taps_support(tiny.resnet()), norms="task")
    before = {name: buffer.clone() for name, buffer in norm_statistics(model).items()}
    tiny.train(model.train())
    assert not tiny.same_bits(norm_statistics(model), before)
    batch = tiny.batch(model)
    expected = tiny.logits(model.eval(), batch)
    delta = te.load(te.save(te.extract(model), tmp_path / "task.safetensors"))
    assert {*norm_parameters(tiny.resnet()), *before} < delta.full_parameters.keys()
    base = tiny.resnet()
    te.apply(base, delta)
    assert torch.equal(tiny.logits(base, batch), expected)
    te.apply(base, delta)
    te.revert(base)
    assert tiny.same_bits(tiny.state(base), tiny.state(tiny.resnet()))
    assert torch.equal(tiny.logits(te.fuse(model).eval(), batch), expected)


def test_statistics_of_two_tasks_are_not_added():
    model = install_taps(tiny.resnet(), taps_support(tiny.resnet()), norms="task")
    delta = te.extract(tiny.train(model.train(), steps=1))
    with pytest.raises(InputError, match=r"16 running statistics of norms .* --norms shared"):
        te.combine([delta, delta], tiny.resnet())


def test_deltas_of_layers_are_combined_like_entries():
    deltas = []
    for lr in (1e-2, 3e-2):
        model = install_taps(tiny.bert(), taps_support(tiny.bert()), trainable=[])
        deltas.append(te.extract(tiny.train(model, lr=lr)))
    name = next(iter(deltas[0].linears))
    base = tiny.bert().get_submodule(name).weight.detach().flatten()
    both = te.combine(deltas, tiny.bert())
    expected = base.double() + sum(delta.linears[name].values.double() - base.double() for delta in deltas)
    found = base.double().clone()
    found[both.linears[name].positions] = both.linears[name].values.double()
    assert float((found - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"norms": "own"}, "unknown norms 'own'"),
        ({"threshold": 0.2}, "scores start at 0.15"),
        ({"threshold": 0.0}, "above 0"),
        ({"trainable": ["bert.encoder.layer.0.output.dense.weight"]}, "cannot train in full as well"),
        ({"trainable": ["nothing"]}, "no parameter is named 'nothing'"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(more, message):
    model = tiny.bert()
    with pytest.raises(InputError, match=message):
        install_taps(model, taps_support(model), **more)
    assert installation(model) is None
    assert not taps_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_support_without_layers_or_with_foreign_ones_is_refused():
    model = tiny.bert()
    with pytest.raises(InputError, match="no layer of the support gets a gate"):
        install_taps(model, Support({}, 1))
    with pytest.raises(InputError, match=r"the model has no linear 'bert\.encoder\.layer\.0\.attention\.self\.query'"):
        install_taps(tiny.gpt2(), taps_support(model))
    install_taps(model, taps_support(model))
    with pytest.raises(InputError, match="already trains a support"):
        install_taps(model, taps_support(tiny.bert()))
