"""A tiny DINOv2 as torch's exporter writes it to an ONNX file."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

CONFIG = Dinov2Config(
    hidden_size=12, num_attention_heads=2, num_hidden_layers=2, image_size=12, patch_size=4, architectures=None
)


def exported(path, without=()):
    """A tiny Dinov2 as torch's exporter leaves it: named biases, anonymous transposed linears, a table in two parts."""
    onnx = pytest.importorskip("onnx")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Dinov2Model(CONFIG).eval()
        for parameter in model.parameters():
            parameter.data.normal_()
        model.embeddings.mask_token.data.zero_()
    model.save_pretrained(path.parent / "expected")
    state = load_file(path.parent / "expected" / "model.safetensors")
    initializers, nodes = [], []

    def add(name, tensor, node, kind="Add"):
        initializers.append(onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name))
        nodes.append(onnx.helper.make_node(kind, ["x", name], [f"y{len(nodes)}"], name=node))

    for count, (name, tensor) in enumerate(state.items()):
        if name in without or name.endswith("mask_token"):
            continue
        module = "/backbone/" + name.rpartition(".")[0].replace(".", "/").replace("layer/", "layer.")
        if name.endswith("position_embeddings"):
            add("onnx::Concat_1", tensor[:, :1], "/backbone/embeddings/Concat_6", "Concat")
            add("onnx::Reshape_2", tensor[:, 1:], "/backbone/embeddings/Reshape_1", "Reshape")
        elif name.endswith("weight") and tensor.dim() == 2:
            add(f"onnx::MatMul_{count}", tensor.t(), f"{module}/MatMul", "MatMul")
        else:
            add(f"backbone.{name}", tensor, f"{module}/Add")
    add("decoder.final_conv.weight", torch.ones(1, 3, 1, 1), "/decoder/final_conv/Conv", "Conv")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "tiny", [], [], initializers)), path)
    return model
