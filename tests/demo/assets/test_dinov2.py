"""Reading a DINOv2-shaped model from an ONNX file."""

import pytest
import torch
from onnx_export import CONFIG, exported
from safetensors.torch import load_file
from transformers import AutoModel

from taskedge.demo.assets.dinov2 import dinov2_state, write_dinov2
from taskedge.errors import InputError


def test_every_weight_of_an_exported_dinov2_is_found(tmp_path):
    model = exported(tmp_path / "tiny.onnx")
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    state = dinov2_state(tmp_path / "tiny.onnx")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    (tmp_path / "made").mkdir()
    write_dinov2(tmp_path / "tiny.onnx", CONFIG, tmp_path / "made")
    picture = torch.randn(1, 3, 8, 12)
    with torch.no_grad():
        again = AutoModel.from_pretrained(tmp_path / "made")(picture).last_hidden_state
        assert torch.equal(again, model(picture).last_hidden_state)


@pytest.mark.parametrize(
    ("without", "message"),
    [("encoder.layer.1.norm2.bias", r"missing_keys.*norm2.bias"), ("embeddings.position_embeddings", "position table")],
)
def test_an_export_that_lacks_a_weight_is_refused(tmp_path, without, message):
    exported(tmp_path / "tiny.onnx", without={without})
    with pytest.raises(InputError, match=message):
        write_dinov2(tmp_path / "tiny.onnx", CONFIG, tmp_path)
