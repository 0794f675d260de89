"""A GGUF file as a base computes what the model it was written from computes, and a damaged one is named as such."""

from __future__ import annotations

import shutil

import pytest
import tiny_gguf_base
import torch
import transformers

from taskedge.backbone import gguf_file
from taskedge.backbone.gguf_file import is_gguf, read_gguf
from taskedge.backbone.loading import load_base, locate_base
from taskedge.backbone.shapes import shape_of
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.errors import InputError

gguf = pytest.importorskip("gguf")
IDS = torch.tensor([[5, 9, 33, 70, 100, 12], [7, 7, 250, 3, 90, 44]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_gguf_base.write_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def file(folder):
    return tiny_gguf_base.write_gguf(folder, folder.parent / "base.gguf")


def test_logits_are_those_of_the_original(folder, file):
    lines: list[str] = []
    base, original = load_base("text-generation", file, log=lines.append), load_base("text-generation", folder)
    with torch.no_grad():
        found, expected = base.model(IDS).logits, original.model(IDS).logits
    assert float((found - expected).abs().max()) <= 2e-3 * float(expected.abs().max())  # the file holds fp16
    half = {name: value.half().float() for name, value in original.model.state_dict().items() if "_proj" in name}
    stored = base.model.state_dict()
    assert len(half) == 14
    assert all(torch.equal(stored[name], value) for name, value in half.items())
    assert base.gguf == read_gguf(file)
    assert original.gguf is None
    assert base.gguf.num_bytes == file.stat().st_size
    size = file.stat().st_size / 1e6
    memory = sum(parameter.nbytes for parameter in base.model.parameters()) / 1e6
    (said,) = (line for line in lines if "GGUF" in line)
    assert f"a GGUF file of {size:.1f} MB, architecture 'llama', 21 tensors (" in said
    assert "M F16" in said
    assert f"dequantized to float32: {memory:.1f} MB in memory" in said


def test_tokens_are_those_of_the_original(folder, file):
    ours = load_base("text-generation", file).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("then the moon", "  Zürich, 12 o'clock!\n", "oo"):
        assert ours(text, add_special_tokens=False).input_ids == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ours(text, add_special_tokens=False).input_ids) == text
    assert (ours.eos_token, ours.bos_token) == (theirs.eos_token, theirs.bos_token)


def test_the_dtype_is_the_one_that_is_asked_for(file):
    assert load_base("text-generation", file, dtype="bf16").model.dtype == torch.bfloat16
    assert load_base("text-generation", file).model.dtype == torch.float32


def test_a_classifier_gets_a_new_head(file):
    base = load_base("text-classification", file, ["a", "b", "c"])
    assert base.new_parameters == ("score.weight",)
    assert base.model(IDS, attention_mask=torch.ones_like(IDS)).logits.shape == (2, 3)


def test_the_model_can_be_saved_and_stored_as_int8(file, tmp_path):
    base = load_base("text-generation", file)
    base.model.save_pretrained(tmp_path / "plain")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(plain(IDS).logits, base.model(IDS).logits)
    assert "quantization_config" not in (tmp_path / "plain/config.json").read_text()
    with torch.no_grad():
        before, after = base.model(IDS).logits, set_weight_storage(base.model, "int8")(IDS).logits
    assert 0 < float((before - after).abs().max()) < 0.1 * float(before.abs().max())


def test_files_beside_it_are_not_read(folder, file, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other/config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "other/tokenizer_config.json").write_text("{}")
    shutil.copy(file, tmp_path / "other/base.gguf")
    assert type(load_base("text-generation", tmp_path / "other/base.gguf").model).__name__ == "LlamaForCausalLM"


def test_its_shape_is_known_without_weights(file):
    shape = shape_of(str(file))
    assert (shape.kind, shape.config.num_hidden_layers, shape.config.hidden_size) == ("causal LM", 2, 32)
    assert shape.load(print)[1]


def test_it_is_found_beside_the_delta(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate_base("base.gguf", file.parent) == str(file.parent / "base.gguf")
    with pytest.raises(InputError, match=r"gone\.gguf: no such file, neither from"):
        locate_base("gone.gguf", file.parent)
    with pytest.raises(InputError, match=r"gone\.gguf: no such file: name a GGUF file or"):
        load_base("text-generation", "gone.gguf")


def test_scaled_frequencies_are_those_of_llama_3(tmp_path):
    scaling = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    scaled = tiny_gguf_base.write_folder(tmp_path / "scaled", rope_parameters=scaling, max_position_embeddings=16384)
    model = transformers.AutoModelForCausalLM.from_pretrained(scaled)
    plain = 1 / 500000.0 ** (torch.arange(0, 8, 2) / 8)
    factors = (plain / model.model.rotary_emb.inv_freq).tolist()
    assert (max(factors), min(factors)) == pytest.approx((32, 1))
    file = tiny_gguf_base.write_gguf(scaled, tmp_path / "scaled.gguf", quantized="F32", rope_factors=factors)
    base = load_base("text-generation", file)
    assert torch.allclose(base.model.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq, rtol=1e-6)
    other = tiny_gguf_base.write_gguf(scaled, tmp_path / "other.gguf", rope_factors=[1.0, 2.0, 3.0, 32.0])
    with pytest.raises(InputError, match=r"'rope_freqs\.weight' are not those of Llama 3\.1 \(factor 32\)"):
        load_base("text-generation", other)


@pytest.mark.parametrize("kept", [3, 40, 900, -100])
def test_a_cut_file_is_named(kept, file, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:kept])
    expected = r"no GGUF file|a damaged or incomplete GGUF file of [\d,]+ bytes .* download it again"
    with pytest.raises(InputError, match=rf"cut\.gguf: ({expected})"):
        load_base("text-generation", cut)


REFUSED = {
    "type": (lambda w: w.add_type("adapter"), r"a GGUF file of type 'adapter', not a model"),
    "parts": (lambda w: w.add_uint16("split.count", 3), r"one of 3 parts of a model: join them first"),
    "long": (lambda w: w.add_tensor("rope_factors_long.weight", torch.ones(4).numpy()), "which transformers does not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_model_is_refused(case, folder, tmp_path):
    more, expected = REFUSED[case]
    file = tiny_gguf_base.write_gguf(folder, tmp_path / "x.gguf", more=more)
    with pytest.raises(InputError, match=expected):
        read_gguf(file)


def test_other_architectures_and_files_without_tokenizer_are_refused(folder, tmp_path):
    other = tiny_gguf_base.write_gguf(folder, tmp_path / "x.gguf", architecture="minicpm")
    with pytest.raises(InputError, match=r"x\.gguf: the GGUF file cannot be loaded .*minicpm.*not supported.*gemma3"):
        load_base("text-generation", other)
    mute = tiny_gguf_base.write_gguf(folder, tmp_path / "y.gguf", tokenizer=False)
    with pytest.raises(InputError, match=r"y\.gguf: a GGUF file without a tokenizer"):
        load_base("text-generation", mute)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named(package, file, monkeypatch):
    def find(name):
        return None if name == package else object()

    def load(name):
        raise ImportError(name)

    monkeypatch.setattr(gguf_file, "find_spec", find)
    if package == "gguf":
        monkeypatch.setattr(gguf_file.importlib, "import_module", load)
    with pytest.raises(InputError, match=rf"package {package}: pip install 'taskedge\[gguf\]'"):
        read_gguf(file)


def test_what_is_a_gguf_file(file, tmp_path):
    (tmp_path / "bytes").write_bytes(file.read_bytes())
    (tmp_path / "text.txt").write_text("text")
    named = (file, tmp_path / "bytes", tmp_path, tmp_path / "text.txt", "bert-base-uncased")
    assert [is_gguf(name) for name in named] == [True, True, False, False, False]
    with pytest.raises(InputError, match=r"text\.txt is a file: name the folder of a model, a GGUF file, or a hub id"):
        load_base("text-generation", tmp_path / "text.txt")
