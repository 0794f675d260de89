import copy

import pytest
import torch
import transformers
from causal_models import CAUSAL_CONFIGS, causal_model, encoder_decoder, labeled_batch
from hypothesis import given, settings
from hypothesis import strategies as st

import taskedge as te
from taskedge.backbone.label_loss import LabelLossModel, label_count, label_shift_of, loss_bytes, use_label_loss
from taskedge.backbone.layers import linears
from taskedge.backbone.linear_cross_entropy import chunk_limit
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.statistics import measure


def gradients(model, batch, **kwargs):
    model.zero_grad()
    output = model(**batch, **kwargs)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    norm = sum(float(g.double().square().sum()) for g in expected.values()) ** 0.5
    return sum(float((found[n].double() - g.double()).square().sum()) for n, g in expected.items()) ** 0.5 / norm


@pytest.mark.parametrize("kind", CAUSAL_CONFIGS)
def test_loss_and_gradients_equal_those_of_transformers_on_full_logits(kind):
    model = causal_model(kind)
    plain, lines = copy.deepcopy(model), []
    assert use_label_loss(model, lines.append)
    assert lines == []
    assert type(model).__name__ == type(plain).__name__  # transformers writes it into config.json

    @settings(max_examples=4, deadline=None, derandomize=True)
    @given(
        seed=st.integers(0, 99), rows=st.integers(1, 3), tokens=st.integers(3, 9),
        count=st.sampled_from([None, 17.0]), train_head=st.booleans(), chunk=st.sampled_from([1, 2**9, 2**26]),
    )  # fmt: skip
    def check(seed, rows, tokens, count, train_head, chunk):
        batch = labeled_batch(model.config, rows, tokens, seed)
        for each in (model, plain):
            each.requires_grad_(True)
            each.get_output_embeddings().requires_grad_(train_head)
        extra = {} if count is None else {"num_items_in_batch": torch.tensor(count)}
        expected, dense = gradients(plain, batch, **extra)
        with chunk_limit(chunk):
            found, ours = gradients(model, batch, **extra)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-7)
        assert "logits" not in found
        assert largest_difference(ours, dense) <= 1e-6

    check()


def test_gradients_in_fp64_equal_full_logits_to_rounding():
    model = causal_model("gemma2").double()
    plain = copy.deepcopy(model)
    assert use_label_loss(model)
    batch = labeled_batch(model.config, 3, 8, seed=1)
    model.get_output_embeddings().requires_grad_(False)
    plain.get_output_embeddings().requires_grad_(False)
    # transformers computes the loss of float64 logits in float32
    logits = plain(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    dense = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert largest_difference(gradients(model, batch)[1], dense) <= 1e-12


@pytest.mark.parametrize("kind", ["gemma2", "cohere"])
def test_what_follows_the_head_is_read_off(kind):
    model = causal_model(kind)
    use_label_loss(model)
    assert model.logit_map.cap == (model.config.final_logit_softcapping if kind == "gemma2" else None)
    assert model.logit_map.scale == pytest.approx(1.0 if kind == "gemma2" else model.config.logit_scale)


def test_entries_of_the_head_get_the_gradient_of_full_logits():
    model = causal_model("llama")
    plain = copy.deepcopy(model)
    use_label_loss(model)
    batch = labeled_batch(model.config, 3, 9, seed=3)
    _, dense = gradients(plain, batch)
    support = te.select(model, [batch], per_neuron=2, linears=["lm_head", "*q_proj"])
    model = te.install(model, support)
    with chunk_limit(2**9):
        model(**batch).loss.backward()
        for name, layer in sparse_layers(model).items():
            expected = dense[f"{name}.weight"][layer.entries.rows, layer.entries.columns]
            torch.testing.assert_close(layer.entries.offsets.grad, expected, rtol=1e-5, atol=1e-7)


def test_calibration_sees_all_inputs_of_the_head():
    model = causal_model("llama")
    plain = copy.deepcopy(model)
    use_label_loss(model)
    batch = labeled_batch(model.config, 3, 9, seed=3)
    norms = [
        measure(each, {"lm_head": linears(each)["lm_head"]}, [batch])["lm_head"].input_norm for each in (model, plain)
    ]
    torch.testing.assert_close(*norms)


def test_a_model_with_unknown_logits_computes_them_for_labeled_positions_itself():
    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args, labels=None, num_items_in_batch=None, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.sin()
            if labels is not None:
                output.loss = self.loss_function(output.logits, labels, self.config.vocab_size)
            return output

    model = Odd(causal_model("llama").config)
    plain = copy.deepcopy(model)
    assert use_label_loss(model)
    assert model.logit_map is None
    batch = labeled_batch(model.config, 2, 6, seed=0)
    expected, dense = gradients(plain, batch)
    found, ours = gradients(model, batch)
    torch.testing.assert_close(found.loss, expected.loss)
    assert largest_difference(ours, dense) <= 1e-6


def test_a_model_with_another_loss_keeps_it_and_says_so():
    config = transformers.BartConfig(
        vocab_size=32, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, init_std=0.5,
    )  # fmt: skip
    model, lines = transformers.BartForCausalLM(config), []
    before = type(model)
    assert not use_label_loss(model, lines.append)
    assert type(model) is before
    assert "computes the logits of every position" in lines[0]


def test_only_labeled_positions_reach_the_head(monkeypatch):
    model = causal_model("llama")
    model.requires_grad_(True)  # the head trains, so its own forward runs
    use_label_loss(model)
    tokens = []
    original = torch.nn.Linear.forward

    def count(self, x):
        if self is model.lm_head:
            tokens.append(x.shape[:-1].numel())
        return original(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", count)
    batch = labeled_batch(model.config, 3, 9, seed=0)
    model(**batch)
    assert sum(tokens) == label_count(batch["labels"]) < 3 * 8


def test_without_labels_the_output_is_the_models_own():
    model = causal_model("qwen2")
    batch = labeled_batch(model.config, 2, 5, seed=0)
    del batch["labels"]
    expected = model(**batch).logits
    use_label_loss(model)
    assert torch.equal(model(**batch).logits, expected)


def test_copies_and_saved_models_keep_their_class_name(tmp_path):
    model = causal_model("llama")
    use_label_loss(model)
    batch = labeled_batch(model.config, 2, 5, seed=0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.mul_(2)
    assert not torch.equal(twin(**batch).loss, model(**batch).loss)
    model.save_pretrained(tmp_path)
    assert '"LlamaForCausalLM"' in (tmp_path / "config.json").read_text()
    assert isinstance(twin, LabelLossModel)


def test_bytes_of_the_loss_follow_from_the_head():
    words = 61
    model = causal_model("llama")
    assert loss_bytes(model, 5) == 0
    use_label_loss(model)
    model.requires_grad_(False)
    assert loss_bytes(model, 5) == 4 * words * 5
    with chunk_limit(4 * words * 2):
        assert loss_bytes(model, 5) == 4 * words * 2
    model.get_output_embeddings().requires_grad_(True)
    assert loss_bytes(model, 5) == 3 * 4 * words * 5
    capped = causal_model("gemma2").requires_grad_(False)
    use_label_loss(capped)
    assert loss_bytes(capped, 5) == 2 * 4 * words * 5


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_compares_logits_with_labels_of_the_same_position(kind):
    model = encoder_decoder(kind)
    plain, lines = copy.deepcopy(model), []
    assert use_label_loss(model, lines.append), lines
    assert (model.logit_map is None) == (kind == "bart")  # it adds a bias of its own to the logits
    batch = labeled_batch(model.config, 3, 9, seed=4)
    batch["labels"] = labeled_batch(model.config, 3, 7, seed=5)["input_ids"]
    batch["labels"][1, 4:] = -100
    expected, dense = gradients(plain, batch)
    found, ours = gradients(model, batch)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-7)
    assert largest_difference(ours, dense) <= 1e-6
    assert label_count(batch["labels"], label_shift_of(model)) == 18


def test_bf16_autocast_is_near_the_full_logits():
    model = causal_model("gemma3_text")
    plain = copy.deepcopy(model)
    use_label_loss(model)
    batch = labeled_batch(model.config, 3, 9, seed=2)
    for each in (model, plain):
        each.get_output_embeddings().requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(**batch).loss, plain(**batch).loss, rtol=1e-2, atol=1e-2)
