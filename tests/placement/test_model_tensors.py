"""What one pass reads and writes, against counts by hand, for layers that are shared, tied and embedded."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from taskedge.delta.delta import Delta, LinearDelta, Provenance
from taskedge.errors import DeltaError, InputError
from taskedge.placement.model_tensors import model_traffic, task_size, task_skeleton

CONFIG = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def meta(kind, config):
    with torch.device("meta"):
        return kind(config)


def reads(traffic):
    return {part.name: part.values_read for part in traffic.base}


def test_a_bert_reads_weights_once_and_one_row_an_id():
    model = meta(transformers.BertModel, transformers.BertConfig(**CONFIG, max_position_embeddings=20))
    traffic = model_traffic(model, 8)
    parts = {part.name: part for part in traffic.base}
    assert len(parts) == sum(1 for _ in model.parameters())
    weight = parts["encoder.layer.1.intermediate.dense.weight"]
    assert (weight.values, weight.values_read, weight.is_matrix) == (512, 512, True)
    assert parts["embeddings.word_embeddings.weight"].values_read == 8 * 16
    assert parts["encoder.layer.0.output.LayerNorm.bias"].values_read == 16
    assert not parts["encoder.layer.0.output.LayerNorm.bias"].is_matrix
    assert traffic.assumed == []
    assert traffic.activations.values == 8 * (16 + 32)  # into and out of a feed-forward layer
    assert traffic.activations.written > 3 * 8 * (5 * 16 + 32)


def test_layers_that_albert_shares_are_stored_once_and_read_by_each():
    config = transformers.AlbertConfig(**CONFIG, embedding_size=8, max_position_embeddings=20)
    traffic = model_traffic(meta(transformers.AlbertModel, config), 8)
    shared = next(part for part in traffic.base if part.name.endswith("ffn.weight"))
    assert (shared.values, shared.values_read) == (512, 3 * 512)


def test_tied_embeddings_are_read_by_rows_and_in_full():
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=20)
    traffic = model_traffic(meta(transformers.GPT2LMHeadModel, config), 8)
    assert reads(traffic)["transformer.wte.weight"] == 8 * 16 + 50 * 16


def test_a_parameter_whose_layer_is_never_called():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(4, 1)
            self.config = transformers.BertConfig(vocab_size=9)

        def forward(self, input_ids):
            x = torch.zeros(*input_ids.shape, 4, device=input_ids.device)
            return self.inner(x, x, x)[0]

    with torch.device("meta"):
        traffic = model_traffic(Net(), 8)
    assert traffic.assumed == ["inner.out_proj.weight", "inner.out_proj.bias"]
    assert reads(traffic)["inner.out_proj.weight"] == 16


def test_images_and_models_that_take_neither():
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                                    image_size=8, patch_size=4)  # fmt: skip
    assert model_traffic(meta(transformers.ViTModel, config), 8).activations.written > 0
    with pytest.raises(InputError, match="takes no token ids"):
        model_traffic(nn.Linear(2, 2, device="meta"), 8)
    bert = meta(transformers.BertModel, transformers.BertConfig(**CONFIG, max_position_embeddings=20))
    with pytest.raises(InputError, match="give fewer tokens_per_pass in the chip file"):
        model_traffic(bert, 21)


def delta(name="bert.encoder.layer.0.output.dense", shape=(16, 32), **provenance):
    index = torch.arange(4)
    linear = LinearDelta(shape, index, index, torch.ones(4), "float32", "0" * 24)
    head = {"classifier.weight": torch.zeros(3, 16), "classifier.bias": torch.zeros(3)}
    given = {"task": "text-classification", "labels": ("a", "b", "c")} | provenance
    return Delta({name: linear}, head, Provenance(**given))


def test_the_skeleton_of_a_task_and_its_size(tmp_path):
    transformers.BertConfig(**CONFIG, max_position_embeddings=20).save_pretrained(tmp_path)
    model = task_skeleton(str(tmp_path), delta())
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.classifier.weight.shape == (3, 16)
    assert type(task_skeleton(str(tmp_path), None)).__name__ == "BertModel"
    size = task_size("a", delta(), model)
    assert (size.entries, size.parameters) == (4, 51)
    own = frozenset({"classifier.weight", "classifier.bias"})
    assert not own & reads(model_traffic(model, 8, own)).keys()


def test_a_delta_of_another_base_is_refused(tmp_path):
    transformers.BertConfig(**CONFIG).save_pretrained(tmp_path)
    model = task_skeleton(str(tmp_path), delta())
    with pytest.raises(DeltaError, match=r"task 'a' changes linear .*which the model does not have; did you mean"):
        task_size("a", delta("bert.encoder.layer.9.output.dense"), model)
    with pytest.raises(DeltaError, match=r"of shape \[16, 16\]; the model has it in \[16, 32\]"):
        task_size("a", delta(shape=(16, 16)), model)
    with pytest.raises(InputError, match="cannot do the task 'image-classification' of the delta"):
        task_skeleton(str(tmp_path), delta(task="image-classification"))


@pytest.mark.parametrize("task", ["", "singing"])
def test_a_delta_that_names_no_task_gets_the_model_that_has_its_linears(tmp_path, task):
    transformers.BertConfig(**CONFIG).save_pretrained(tmp_path)
    made = task_skeleton(str(tmp_path), delta(task=task, labels=()))
    assert type(made).__name__ == "BertForSequenceClassification"
    assert type(task_skeleton(str(tmp_path), delta("encoder.layer.0.output.dense", task=task))).__name__ == "BertModel"
