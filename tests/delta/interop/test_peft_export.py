"""The real peft computes the same logits from an exported adapter, for any support."""

from __future__ import annotations

import dataclasses
import json

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

import taskedge as te
from taskedge.backbone.layers import linears
from taskedge.delta.interop.peft_layouts import LAYOUTS
from taskedge.errors import InputError, UnknownName
from taskedge.selection.support import columns_of_every_row

BUDGETS = {
    "one per neuron": {"per_neuron": 1},
    "uneven 0.5 %": {"budget": "0.5%"},
    "per_layer": {"budget": "0.5%", "allocation": "per_layer"},
    "global": {"budget": "0.5%", "allocation": "global"},
    "global 4 %": {"budget": "4%", "allocation": "global"},
}


def tuned(make, *, trainable=None, **options):
    """Return a delta trained on the tiny model, and the logits of that model."""
    model = make()
    support = te.select(model, [tiny.batch(model)], **options)
    tiny.train(te.install(model, support, trainable=trainable))
    return te.extract(model)


def through_peft(make, adapter):
    """Return the tiny base with the adapter, loaded by peft."""
    return peft.PeftModel.from_pretrained(make(), adapter).eval()


def assert_same_logits(make, delta, adapter):
    ours, theirs = te.apply(make(), delta), through_peft(make, adapter)
    for seed in range(3):
        batch = tiny.batch(ours, seed=seed)
        with torch.no_grad():
            assert (tiny.logits(theirs, batch) - tiny.logits(ours, batch)).abs().max() <= 1e-5
    untrained = tiny.logits(make(), tiny.batch(ours))
    assert (tiny.logits(ours, tiny.batch(ours)) - untrained).abs().max() > 1e-3  # or the test says nothing


@pytest.mark.parametrize("peft_type", ["supertuning", "shira", "lora"])
@pytest.mark.parametrize("budget", list(BUDGETS.values()), ids=list(BUDGETS))
@pytest.mark.parametrize("make", [tiny.bert, tiny.vit], ids=["bert", "vit"])
def test_peft_computes_the_same_logits(make, budget, peft_type, tmp_path):
    delta = tuned(make, **budget)
    done = te.export(make(), delta, tmp_path / "adapter", to="peft", peft_type=peft_type)
    assert_same_logits(make, delta, tmp_path / "adapter")
    assert done.details["peft_type"] == peft_type
    assert done.details["entries"] == delta.num_entries
    assert done.details["modules_to_save"] == ["classifier"]


@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("make", [tiny.bert, tiny.vit, tiny.gpt2], ids=["bert", "vit", "gpt2"])
def test_entries_in_few_columns_are_a_lora_of_as_many_ranks(make, count, tmp_path):
    delta = tuned(make, columns=count)
    done = te.export(make(), delta, tmp_path / "adapter", to="peft")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (done.details["peft_type"], config["r"], config["lora_alpha"]) == ("lora", count, count)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    base = linears(make())
    for name, entries in delta.linears.items():
        a, b = (tensors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        columns = columns_of_every_row(entries.shape[0], entries.rows, entries.columns)
        assert a.argmax(1)[: len(columns)].tolist() == columns.tolist()
        assert a.sum(1).tolist() == [1.0] * len(columns) + [0.0] * (count - len(columns))
        assert set(a.flatten().tolist()) <= {0.0, 1.0}
        before = base[name].weight[:, columns]
        assert torch.equal(b[:, : len(columns)], entries.values.view_as(before) - before)
    assert_same_logits(make, delta, tmp_path / "adapter")


def test_the_best_entries_in_few_columns_are_a_lora_of_at_most_as_many_ranks(tmp_path):
    delta = tuned(tiny.bert, columns=4, per_neuron=1)
    te.export(tiny.bert(), delta, tmp_path / "adapter", to="peft", peft_type="lora")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] <= 4
    assert_same_logits(tiny.bert, delta, tmp_path / "adapter")


@pytest.mark.parametrize("budget", list(BUDGETS.values()), ids=list(BUDGETS))
def test_conv1d_goes_as_lora(budget, tmp_path):
    delta = tuned(tiny.gpt2, **budget)
    done = te.export(tiny.gpt2(), delta, tmp_path / "adapter", to="peft")
    assert done.details["peft_type"] == "lora"
    assert_same_logits(tiny.gpt2, delta, tmp_path / "adapter")


@pytest.mark.parametrize("peft_type", ["supertuning", "shira"])
def test_conv1d_is_refused_by_the_sparse_forms(peft_type, tmp_path):
    delta = tuned(tiny.gpt2, per_neuron=1)
    with pytest.raises(InputError, match=r"supports nn.Linear only.*Conv1D.*PEFT type 'lora'"):
        te.export(tiny.gpt2(), delta, tmp_path / "adapter", to="peft", peft_type=peft_type)
    assert not list(tmp_path.iterdir())


def hybrid(make, products, scale=None, sparse=True):
    """Return a delta with low-rank products in linears whose names contain one of ``products``, else entries."""
    model = make()
    support = te.select(model, [tiny.batch(model)], per_neuron=1)
    low_rank = {name: 1 + place for place, name in enumerate(support.linears) if any(part in name for part in products)}
    left = {name: linear for name, linear in support.linears.items() if sparse and name not in low_rank}
    te.install(model, dataclasses.replace(support, linears=left, low_rank=low_rank), alpha=scale)
    return te.extract(tiny.train(model))


@pytest.mark.parametrize("alpha", [None, 3.0])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2], ids=["bert", "gpt2"])
def test_low_rank_products_go_as_lora(make, sparse, alpha, tmp_path):
    delta = hybrid(make, ["query", "intermediate", "c_proj"], alpha, sparse)
    assert len(delta.low_rank) >= 3
    done = te.export(make(), delta, tmp_path / "adapter", to="peft")
    assert done.details["peft_type"] == "lora"
    assert done.details["low_rank"] == len(delta.low_rank)
    assert_same_logits(make, delta, tmp_path / "adapter")


def test_products_of_one_scale_keep_their_factors(tmp_path):
    delta = hybrid(tiny.bert, ["query"], sparse=False)
    te.export(tiny.bert(), delta, tmp_path / "adapter", to="peft")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, product in delta.low_rank.items():
        a = stored[f"base_model.model.{name}.lora_A.weight"]
        b = stored[f"base_model.model.{name}.lora_B.weight"]
        assert torch.equal(a[: product.rank], product.a)
        assert torch.equal(b[:, : product.rank], product.b)
        assert not a[product.rank :].any()  # all linears have the rank of the largest
        assert not b[:, product.rank :].any()


@pytest.mark.parametrize(
    "scale",
    [lambda config, a: config["lora_alpha"] / config["r"], lambda config, a: config["lora_alpha"] / a.shape[0]],
    ids=["one scale, as vLLM", "alpha over the tensor's rank, as llama.cpp"],
)
@pytest.mark.parametrize("make_delta", ["random", "taskedge", "hybrid"])
def test_lora_is_right_for_readers_without_patterns(make_delta, scale, tmp_path):
    """The weights of the model that such a reader computes are the weights with the delta applied."""
    delta = hybrid(tiny.bert, ["query"]) if make_delta == "hybrid" else tuned(tiny.bert, budget="1%", rule=make_delta)
    te.export(tiny.bert(), delta, tmp_path / "adapter", to="peft", peft_type="lora")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    expected = te.apply(tiny.bert(), delta).state_dict()
    read = tiny.bert().state_dict()
    changed = [name for name in read if f"base_model.model.{name[:-7]}.lora_A.weight" in stored]
    assert len(changed) == len(delta.linears) + len(delta.low_rank)
    for name in changed:
        a = stored[f"base_model.model.{name[:-7]}.lora_A.weight"]
        b = stored[f"base_model.model.{name[:-7]}.lora_B.weight"]
        torch.testing.assert_close(read[name] + scale(config, a) * (b @ a), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("peft_type", ["supertuning", "shira"])
def test_low_rank_products_are_refused_by_the_sparse_forms(peft_type, tmp_path):
    with pytest.raises(InputError, match="is changed by a low-rank product: export as PEFT type 'lora'"):
        te.export(tiny.bert(), hybrid(tiny.bert, ["query"]), tmp_path / "adapter", to="peft", peft_type=peft_type)


@pytest.mark.parametrize("peft_type", ["supertuning", "shira", "lora"])
def test_merging_in_peft_gives_the_weights(peft_type, tmp_path):
    delta = tuned(tiny.bert, budget="1%", allocation="global")
    te.export(tiny.bert(), delta, tmp_path / "adapter", to="peft", peft_type=peft_type)
    merged = through_peft(tiny.bert, tmp_path / "adapter").merge_and_unload()
    expected = te.apply(tiny.bert(), delta).state_dict()
    found = merged.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-7, atol=1e-8, msg=name)


def test_nothing_but_safetensors_and_json(tmp_path):
    delta = tuned(tiny.bert, per_neuron=1)
    te.export(tiny.bert(), delta, tmp_path / "adapter", to="peft", base="a/base")
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "a/base"
    assert config["task_type"] == "SEQ_CLS"
    assert config["inference_mode"] is True


def test_the_padding_is_reported(tmp_path):
    delta = tuned(tiny.bert, budget="0.5%", allocation="global")
    for peft_type, values in (("supertuning", "supertuning_values"), ("shira", "shira_weight")):
        done = te.export(tiny.bert(), delta, tmp_path / peft_type, to="peft", peft_type=peft_type)
        stored = load_file(tmp_path / peft_type / "adapter_model.safetensors")
        held = sum(tensor.numel() for name, tensor in stored.items() if name.endswith(values))
        assert held == done.details["entries"] + done.details["padded"]
        assert done.details["padded"] > 0
        for name, tensor in stored.items():
            if name.endswith("indices"):
                assert len(tensor.unique(dim=-1).t() if tensor.dim() == 2 else tensor.unique()) == tensor.shape[-1]


def test_the_default_is_the_sparse_form_with_less_padding(tmp_path):
    for budget in BUDGETS.values():
        delta = tuned(tiny.bert, **budget)
        padded = {}
        for peft_type in ("supertuning", "shira"):
            out = tmp_path / peft_type
            padded[peft_type] = te.export(
                tiny.bert(), delta, out, to="peft", peft_type=peft_type, replace=True
            ).details["padded"]
        chosen = te.export(tiny.bert(), delta, tmp_path / "chosen", to="peft", replace=True).details
        assert chosen["padded"] == min(padded.values()) == padded[chosen["peft_type"]]


def test_full_parameters_outside_the_head(tmp_path):
    trainable = ["classifier", "*.LayerNorm.bias", "bert.pooler.dense.weight"]
    delta = tuned(tiny.bert, per_neuron=1, trainable=trainable)
    done = te.export(tiny.bert(), delta, tmp_path / "adapter", to="peft")
    assert "bert.pooler.dense" in done.details["modules_to_save"]
    assert_same_logits(tiny.bert, delta, tmp_path / "adapter")


def test_the_head_goes_along_even_if_it_was_not_trained(tmp_path):
    """peft saves the classifier of every SEQ_CLS adapter, and fails to load one without."""
    delta = tuned(tiny.bert, per_neuron=1, trainable=[])
    te.export(tiny.bert(), delta, tmp_path / "adapter", to="peft")
    assert_same_logits(tiny.bert, delta, tmp_path / "adapter")


def test_a_plain_module(tmp_path):
    delta = tuned(tiny.mlp, per_neuron=2)
    for peft_type in LAYOUTS:
        te.export(tiny.mlp(), delta, tmp_path / peft_type, to="peft", peft_type=peft_type)
        assert_same_logits(tiny.mlp, delta, tmp_path / peft_type)


@pytest.mark.parametrize("peft_type", ["supertuning", "lora"])
def test_bf16(peft_type, tmp_path):
    """With weights in bf16 logits agree within its rounding, because peft adds and does not replace."""

    def make():
        return tiny.bert().bfloat16()

    model = make()
    te.install(model, te.select(model, [tiny.batch(model)], per_neuron=1))
    delta = te.extract(tiny.train(model))
    te.export(make(), delta, tmp_path / "adapter", to="peft", peft_type=peft_type)
    ours, theirs = te.apply(make(), delta), through_peft(make, tmp_path / "adapter")
    batch = tiny.batch(ours)
    with torch.no_grad():
        torch.testing.assert_close(tiny.logits(theirs, batch), tiny.logits(ours, batch), rtol=0.05, atol=0.02)


def test_deltas_that_peft_cannot_represent_are_refused(tmp_path):
    out = tmp_path / "adapter"
    model = tiny.bert()
    support = te.select(model, [tiny.batch(model)], per_neuron=1)
    te.install(model, support, trainable=["*.query.bias"])
    with pytest.raises(InputError, match=r"query' also has entries.*merge it or export a patch"):
        te.export(tiny.bert(), te.extract(model), out, to="peft")
    empty = te.Delta(linears={}, full_parameters={"classifier.bias": torch.zeros(3)})
    with pytest.raises(InputError, match="changes no linear"):
        te.export(tiny.bert(), empty, out, to="peft")
    with pytest.raises(UnknownName, match="did you mean 'shira'"):
        te.export(tiny.bert(), tuned(tiny.bert, per_neuron=1), out, to="peft", peft_type="shirra")
    assert not list(tmp_path.iterdir())


class Odd(nn.Module):
    """Modules whose names have the same end, and a parameter outside any layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a = nn.ModuleDict({"out": nn.Linear(8, 8)})
        self.b = nn.ModuleDict({"a": nn.ModuleDict({"out": nn.Linear(8, 8)})})
        self.out, self.scale = nn.Linear(8, 3), nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.out(self.b["a"]["out"](torch.tanh(self.a["out"](x * self.scale))))


def test_only_the_named_linears_are_touched(tmp_path):
    """``b.a.out`` also ends in ``a.out``, and has no entries."""
    model = Odd()
    te.install(model, te.select(model, rule="random", per_neuron=1, linears=["a.out"]), trainable=[])
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=3e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 8)).square().mean().backward()
        optimizer.step()
    delta = te.extract(model)
    for peft_type in LAYOUTS:
        te.export(Odd(), delta, tmp_path / peft_type, to="peft", peft_type=peft_type)
        x = torch.randn(4, 8)
        with torch.no_grad():
            torch.testing.assert_close(
                through_peft(Odd, tmp_path / peft_type)(x), te.apply(Odd(), delta)(x), rtol=0, atol=1e-5
            )


@pytest.mark.parametrize(("whole", "told"), [("out.bias", "would take 'a.out'"), ("scale", "of the model itself")])
def test_modules_that_peft_would_confuse_are_refused(whole, told, tmp_path):
    model = Odd()
    te.install(model, te.select(model, rule="random", per_neuron=1, linears=["b.a.out"]), trainable=[whole])
    with pytest.raises(InputError, match=told):
        te.export(Odd(), te.extract(model), tmp_path / "adapter", to="peft")
