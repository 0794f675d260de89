"""A delta is loaded together with its base, or with another one that the caller names."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import tiny_gguf_base
import tiny_task
import torch
import transformers

from taskedge.backbone.loading import load_base
from taskedge.backbone.storage.frozen_layer import FrozenWeightLayer
from taskedge.cli.main import main
from taskedge.delta.apply import applied_to
from taskedge.delta.file import load, save
from taskedge.delta.load_with_delta import load_with_delta
from taskedge.errors import BaseMismatch, DeltaError, InputError
from taskedge.training.config import load_config
from taskedge.training.inference import prepare_inference
from taskedge.training.tasks import Columns
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with models, data and a delta that names its base by an absolute path."""
    folder = tiny_task.folder_of_a_task(tmp_path_factory.mktemp("use"))
    flags = {"model": str(folder / "base"), "train": folder / "train.csv", "text": ["text"], "label": "label"}
    settings = load_config(
        TuneConfig, {**flags, "budget": "2%", "epochs": 1, "batch_size": 8, "out": folder / "task.safetensors"}
    )
    tune(settings, progress=False, log=str)
    return folder


def test_the_base_holds_the_values_of_the_delta(made):
    base, delta = load_with_delta(made / "task.safetensors")
    assert delta.provenance.base == str(made / "base")
    for name, linear in delta.linears.items():
        weight = base.model.get_submodule(name).weight
        assert torch.equal(weight[linear.rows, linear.columns], linear.values)
    for name, tensor in delta.full_parameters.items():
        assert torch.equal(dict(base.model.named_parameters())[name], tensor)
    assert base.model.config.id2label == {0: "neg", 1: "pos"}


def test_a_base_that_moved(made, tmp_path):
    moved = shutil.copytree(made / "base", tmp_path / "moved")
    path = tmp_path / "o"
    save(load(made / "task.safetensors").with_provenance(base=str(tmp_path / "gone")), path)
    with pytest.raises(InputError, match=r"no such folder.*names it as its base: give its location with --model"):
        load_with_delta(path)
    load_with_delta(path, str(moved))
    with pytest.raises(InputError) as caught:
        load_with_delta(path, str(tmp_path / "nowhere"))
    assert "as its base" not in str(caught.value)


def test_a_relative_base_is_found_from_any_folder(made, tmp_path, monkeypatch):
    """The path is looked up from the current folder, then from the delta's; it is never a hub id."""
    shutil.copytree(made / "base", tmp_path / "project" / "models" / "bert")
    path = tmp_path / "project" / "task.safetensors"
    save(load(made / "task.safetensors").with_provenance(base="models/bert"), path)
    for folder, name in ((tmp_path / "project", path.name), (tmp_path, "project/task.safetensors")):
        monkeypatch.chdir(folder)
        base, delta = load_with_delta(Path(name))
        assert base.model.config.num_labels == 2
        assert delta.provenance.base == "models/bert"
    save(load(path).with_provenance(base="models/gone"), path)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", None)  # nobody calls it
    for folder in (tmp_path / "project", tmp_path):
        monkeypatch.chdir(folder)
        with pytest.raises(InputError, match=r"models/gone: no such folder, neither from .* nor from .*project; "):
            load_with_delta(path)


def test_what_force_overrules_is_logged_with_numbers(made):
    lines = []
    base, delta = load_with_delta(made / "task.safetensors", str(made / "other"), force=True, log=lines.append)
    difference = f"{len(delta.linears)} of {len(delta.linears)} linears hold other values than the delta's base"
    assert lines == [f"forced: {difference}"]
    assert applied_to(base.model).forced == difference
    lines.clear()
    base, _ = load_with_delta(made / "task.safetensors", force=True, log=lines.append)
    assert lines == []
    assert applied_to(base.model).forced == ""
    load_with_delta(made / "task.safetensors", str(made / "other"), weight_storage="int8", force=True, log=lines.append)
    assert f"forced: {difference}" in lines


def test_a_wrong_base_is_refused_unless_forced(made):
    with pytest.raises(BaseMismatch, match="wrong base"):
        load_with_delta(made / "task.safetensors", str(made / "other"))
    base, delta = load_with_delta(made / "task.safetensors", str(made / "other"), force=True)
    assert set(delta.full_parameters) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(base.model.classifier.bias, delta.full_parameters["classifier.bias"])
    with pytest.raises(BaseMismatch, match="no linear"):
        load_with_delta(made / "task.safetensors", str(made / "gpt2"), force=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": ()}, "names no labels"),
        ({"base": ""}, "does not name its base: give it with"),
        ({"task": ""}, "does not name a known task"),
    ],
)
def test_a_delta_without_task_labels_or_base(made, tmp_path, changes, told):
    save(load(made / "task.safetensors").with_provenance(**changes), tmp_path / "o")
    with pytest.raises(InputError, match=told):
        load_with_delta(tmp_path / "o")


def test_no_delta(made):
    with pytest.raises(DeltaError):
        load_with_delta(made / "train.csv")
    with pytest.raises(DeltaError, match="not a delta"):
        load_with_delta(made / "base" / "model.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_with_delta(made / "nothere")


def test_int8_weight_storage(made):
    """The base is checked before it is quantized; an explicit storage overrides the storage of the training."""
    path = made / "task.safetensors"
    base, delta = load_with_delta(path, weight_storage="int8")
    name, linear = next(iter(delta.linears.items()))
    layer = base.model.get_submodule(name)
    assert isinstance(layer, FrozenWeightLayer)
    assert torch.equal(layer.weight[linear.rows, linear.columns], linear.values)
    assert not isinstance(load_with_delta(path)[0].model.get_submodule(name), FrozenWeightLayer)
    with pytest.raises(BaseMismatch, match="wrong base"):
        load_with_delta(path, str(made / "other"), weight_storage="int8")
    load_with_delta(path, str(made / "other"), weight_storage="int8", force=True)


def test_a_delta_is_used_as_it_was_trained(made, tmp_path):
    flags = {"model": str(made / "base"), "train": made / "train.csv", "text": ["text"], "label": "label"}
    settings = load_config(
        TuneConfig,
        {**flags, "budget": "2%", "epochs": 1, "weight_storage": "int8", "out": tmp_path / "task.safetensors"},
    )
    tune(settings, progress=False, log=str)
    for held, expected in ((None, True), ("resident", False)):
        base, delta = load_with_delta(tmp_path / "task.safetensors", weight_storage=held)
        assert {isinstance(base.model.get_submodule(name), FrozenWeightLayer) for name in delta.linears} == {expected}
    with pytest.raises(BaseMismatch, match="wrong base"):
        load_with_delta(tmp_path / "task.safetensors", str(made / "other"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "head"),
    [(("POSITIVE", "NEGATIVE", "x"), "new"), (("POS", "NEG"), "base"), (("LABEL_0", "LABEL_1"), "new")],
)
def test_a_base_with_a_head_of_its_own(made, tmp_path, names, head):
    """The delta brings the head, whatever the training began with, and says what that was."""
    base = tiny_task.bert(tmp_path / "own", classes=len(names), id2label=dict(enumerate(names)))
    flags = {"model": str(base), "train": made / "train.csv", "text": ["text"], "label": "label", "budget": "2%"}
    flags |= {"eval": made / "eval.csv", "epochs": 1, "batch_size": 8, "out": tmp_path / "task.safetensors"}
    lines = []
    measured = tune(load_config(TuneConfig, flags), progress=False, log=lines.append).quality
    assert sum(line.startswith("head: ") for line in lines) == 1
    _, delta = load_with_delta(tmp_path / "task.safetensors", log=lines.append)
    assert delta.provenance.training["head"] == head
    assert sum(line.startswith("head: ") for line in lines) == 1
    inference = prepare_inference(tmp_path / "task.safetensors", made / "eval.csv", Columns(), answers=True, log=str)
    assert inference.evaluate(8, str) == measured
    assert set(delta.full_parameters) == {"classifier.weight", "classifier.bias"}


def test_the_training_begins_with_the_own_head(made, tmp_path):
    """A base that was trained on the classes answers as before, whatever the order of its outputs."""
    settings = {"model": str(made / "base"), "train": made / "train.csv", "text": ["text"], "label": "label"}
    settings |= {"eval": made / "eval.csv", "batch_size": 8, "budget": "2%", "out": tmp_path / "first"}
    good = tune(load_config(TuneConfig, settings | {"epochs": 2, "lr": 1e-2}), progress=False, log=str).quality
    model = load_with_delta(tmp_path / "first")[0].model
    model.config.id2label = {0: "POS", 1: "NEG"}
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    tiny_task._save(model, tmp_path / "own")
    settings |= {"model": str(tmp_path / "own"), "out": tmp_path / "second", "epochs": 0.1, "lr": 1e-9, "head_lr": 1e-9}
    again = tune(load_config(TuneConfig, settings), progress=False, log=str).quality
    assert again == pytest.approx(good, rel=1e-4)


def test_a_tokenizer_with_more_tokens_than_the_base_is_refused_by_every_verb(made, tmp_path, capfd):
    base = shutil.copytree(made / "base", tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(base)
    use = ["--model", str(base), "--data", str(made / "eval.csv")]
    tuning = tiny_task.tuning(made, "--out", tmp_path / "o", "--model", base)
    for command in (
        tuning,
        ["eval", str(made / "task.safetensors"), *use],
        ["predict", str(made / "task.safetensors"), *use],
    ):
        assert main(list(command)) == 2
        assert "22 tokens only: 'zebra' cannot be read: use the tokenizer" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_base_is_loaded_in_the_dtype_of_the_training(made, tmp_path, dtype):
    """A program may train in fp32 on files in bf16; the delta then fits the fp32 values only."""
    from taskedge import extract, install, select

    model = transformers.AutoModelForSequenceClassification.from_pretrained(made / "own")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(made / "own" / name, tmp_path / "bf16")
    trained = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "bf16", dtype=dtype, id2label={0: "neg", 1: "pos"}
    )
    install(trained, select(trained, rule="magnitude", budget="2%"))
    save(extract(trained), tmp_path / "o")
    base, delta = load_with_delta(tmp_path / "o")
    assert (delta.provenance.task, delta.provenance.labels) == ("text-classification", ("neg", "pos"))
    assert next(base.model.parameters()).dtype == dtype


@pytest.fixture(scope="module")
def from_gguf(tmp_path_factory):
    """Return a folder with a GGUF file, the folder it was written from, and a delta made on the file."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("gguf")
    tiny_gguf_base.write_folder(folder / "model")
    tiny_gguf_base.write_gguf(folder / "model", folder / "base.gguf", quantized="Q8_0")
    tiny_task.table(folder / "train.csv", tiny_task.dialogs(16), ("prompt", "response"))
    flags = {"model": str(folder / "base.gguf"), "train": folder / "train.csv", "eval": folder / "train.csv"}
    short = {"budget": "2%", "epochs": 1, "batch_size": 8, "threads": 1}
    lines: list[str] = []
    tune(load_config(TuneConfig, {**flags, **short, "out": folder / "t.safetensors"}), progress=False, log=lines.append)
    assert sum("a GGUF file of" in line for line in lines) == 1
    return folder


def test_a_delta_on_a_gguf_file_is_bound_to_it(from_gguf, tmp_path):
    """Another file is refused even if it holds the same weights."""
    path, file = from_gguf / "t.safetensors", from_gguf / "base.gguf"
    base, delta = load_with_delta(path)
    stated = delta.provenance.training["gguf"]
    assert stated == {"file": "base.gguf", "bytes": file.stat().st_size, "digest": base.gguf.digest}
    name, linear = next(iter(delta.linears.items()))
    assert torch.equal(base.model.get_submodule(name).weight[linear.rows, linear.columns], linear.values)
    renamed = tiny_gguf_base.write_gguf(
        from_gguf / "model", tmp_path / "named.gguf", quantized="Q8_0", more=lambda writer: writer.add_name("another")
    )
    told = (
        r"wrong base: the base is the GGUF file 'named.gguf' \([\d,]+ bytes, digest .*made on 'base.gguf'.*: name that"
    )
    with pytest.raises(BaseMismatch, match=told):
        load_with_delta(path, str(renamed))
    other = tiny_gguf_base.write_gguf(from_gguf / "model", tmp_path / "f16.gguf", quantized="F16")
    lines: list[str] = []
    forced, _ = load_with_delta(path, str(other), force=True, log=lines.append)
    text = applied_to(forced.model).forced
    assert "the base is the GGUF file 'f16.gguf'" in text
    assert "linears hold other values" in text
    assert f"forced: {text}" in lines
    with pytest.raises(BaseMismatch, match="linears hold other values"):
        load_with_delta(path, str(from_gguf / "model"))


def test_a_delta_on_a_gguf_file_serves_eval_predict_and_exports(from_gguf, tmp_path, capsys):
    path, data = str(from_gguf / "t.safetensors"), str(from_gguf / "train.csv")
    assert main(["eval", path, "--data", data, "--max-new-tokens", "3"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["predict", path, "--data", data, "--out", str(tmp_path / "p.csv"), "--max-new-tokens", "3"]) == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == [str(number) for number in range(1, 17)]
    assert main(["export", path, "--to", "gguf", "--out", str(tmp_path / "m.gguf")]) == 0
    assert main(["merge", path, "--out", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    tuned = load_with_delta(Path(path))[0].model
    ids = torch.tensor([[5, 9, 33, 70, 100, 12]])
    with torch.no_grad():
        expected = tuned(ids).logits
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        again = load_base("text-generation", tmp_path / "m.gguf").model(ids).logits
    assert torch.equal(merged, expected)
    assert float((again - expected).abs().max()) < 0.02 * float(expected.abs().max())  # q8_0 rounds the entries
