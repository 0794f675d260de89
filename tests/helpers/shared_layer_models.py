"""A model that runs one layer several times, and the comparison with dense autograd in fp64."""

import tiny
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
)

import taskedge as te
from taskedge.backbone.layers import linears
from taskedge.forms.sparse import sparse_layers


def albert(layers=3):
    """Return a model with one layer of weights that runs ``layers`` times."""
    config = AlbertConfig(
        vocab_size=tiny.VOCABULARY,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=layers,
        num_hidden_groups=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        num_labels=tiny.LABELS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return AlbertForSequenceClassification(config).eval()


def agree(model, twin, batch):
    """Check that the gradients of all entries equal those of dense autograd in fp64, rounded to fp32."""
    for one in (model, twin):
        one(**batch).loss.backward()
    layers = sparse_layers(model)
    assert layers
    for name, layer in layers.items():
        dense = linears(twin)[name]
        gradient = dense.adapter.matrix(dense.module.weight.grad)[layer.entries.rows, layer.entries.columns]
        torch.testing.assert_close(
            layer.entries.offsets.grad, gradient.float(), rtol=1e-6, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def random_support(model, only=None):
    return te.select(model, budget="5%", rule="random", linears=only)
