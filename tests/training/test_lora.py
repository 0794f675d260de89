"""Plain LoRA through PEFT, and the forms of ``tune``: the same loop, the same file, the same bytes after a kill."""

from __future__ import annotations

import json
import signal

import peft
import pytest
import tiny
import torch
from killed_runs import OFTEN, killed_at
from tiny_task import forked, snapshot, tuning
from torch import nn

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.cli.main import main
from taskedge.delta.file import load
from taskedge.errors import InputError
from taskedge.selection.support import Support
from taskedge.training import checkpoint, dry_run, tune
from taskedge.training.config import load_config
from taskedge.training.lora import PeftLora
from taskedge.training.training_settings import LEARNING_RATES
from taskedge.training.tune_config import TuneConfig


def everywhere(model, rank=3):
    return Support({}, sum(p.numel() for p in model.parameters()), low_rank=dict.fromkeys(candidates(model), rank))


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit])
def test_the_delta_computes_what_the_peft_model_does(make):
    model, fresh = make(), make()
    before = tiny.state(fresh)
    head = te.install(make(), everywhere(fresh)).__dict__["_taskedge"].full_parameters
    lora = PeftLora(model, everywhere(model), head, alpha=6.0, seed=0)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in names if ".lora_" not in name} == set(head)
    assert len(names) == len(head) + 2 * len(candidates(fresh))
    tiny.train(model)
    given = tiny.batch(model, seed=9)
    expected = tiny.logits(model, given)
    delta = lora.extract()
    assert {product.scale for product in delta.low_rank.values()} == {2.0}
    te.apply(fresh, delta)
    assert (tiny.logits(fresh, given) - expected).abs().max() <= 1e-5

    plain = lora.fuse()
    te.apply(plain, delta, force=True)
    assert {name: type(module) for name, module in plain.named_modules()} == {
        name: type(module) for name, module in make().named_modules()
    }
    assert tiny.same_bits(plain.state_dict(), fresh.state_dict())
    te.revert(fresh)
    assert tiny.same_bits(fresh.state_dict(), before)


def test_only_the_linears_that_are_named_carry_lora():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

    model = nn.ModuleDict({"fc": nn.Linear(4, 4), "block": Inner()})
    PeftLora(model, Support({}, 40, low_rank={"fc": 2}), [], alpha=None, seed=0)
    assert isinstance(model["fc"], peft.tuners.lora.LoraLayer)
    assert type(model["block"].fc) is nn.Linear


def test_a_weight_cannot_carry_lora_and_train_whole(mlp):
    with pytest.raises(InputError, match=r"'first\.weight' carries LoRA"):
        PeftLora(mlp, Support({}, 245, low_rank={"first": 2}), ["first.weight"], alpha=None, seed=0)


def test_a_bias_of_a_linear_with_lora_trains_whole(mlp):
    lora = PeftLora(mlp, Support({}, 245, low_rank={"first": 2}), ["first.bias"], alpha=None, seed=0)
    before = mlp.first.base_layer.bias.detach().clone()
    tiny.train(mlp)
    assert not torch.equal(lora.extract().full_parameters["first.bias"], before)


# -- tune --------------------------------------------------------------------------------------------------------------


def arguments(task, form, *more, model="base"):
    """Return the arguments of a run of 12 steps; LoRA takes no budget."""
    made = tuning(task, *more, "--form", form, "--rank", 3, model=model)
    if form == "lora":
        place = made.index("--budget")
        del made[place : place + 2]
    return made


@pytest.fixture(scope="module", params=["sparse_lora", "sparse_plus_low_rank", "lora"])
def whole(request, task, tmp_path_factory):
    """Return a form, the bytes that an uninterrupted run of it writes, and its JSON output."""
    out = tmp_path_factory.mktemp("whole") / "task.safetensors"
    ended = forked([*arguments(task, request.param, "--out", out, *OFTEN), "--json"])
    assert ended.code == 0, ended.err
    assert snapshot(out.parent).keys() == {"task.safetensors"}
    return request.param, out, json.loads(ended.out)


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2])
def test_killed_and_resumed(task, whole, tmp_path, call):
    form, expected, _ = whole
    out = tmp_path / "task.safetensors"
    run = arguments(task, form, "--out", out, *OFTEN)
    assert forked(run, killed_at(checkpoint, "write", call=call, after=True)).code == -signal.SIGKILL
    assert not out.exists()
    changed = forked([*run, "--resume", "--rank", "2"])
    assert changed.code == 2
    assert "--rank 3 (now --rank 2)" in changed.err
    ended = forked([*run, "--resume"])
    assert ended.code == 0, ended.err
    assert out.read_bytes() == expected.read_bytes()
    assert snapshot(tmp_path).keys() == {"task.safetensors"}


def test_a_checkpoint_holds_the_factors_and_no_base(task, whole, tmp_path):
    form, _, said = whole
    run = arguments(task, form, "--out", tmp_path / "o", *OFTEN)
    forked(run, killed_at(checkpoint, "write", after=True))
    newest = checkpoint.Checkpoint(checkpoint.latest(tmp_path / "o.run"))
    saved = {name: tensor for name, tensor in newest._tensors.items() if name.startswith("parameter/")}
    assert sum(tensor.numel() for tensor in saved.values()) == said["trained"] + said["head"]


def test_what_the_file_holds(task, whole):
    form, path, said = whole
    delta = load(path)
    changed = {**delta.linears, **delta.low_rank}
    factors = sum(3 * sum(linear.shape) for linear in changed.values())
    assert said["trained"] == factors + (124 if form == "sparse_plus_low_rank" else 0) > 1000
    assert said["form"] == form
    training = delta.provenance.training
    assert (training["form"], training["rank"], training["alpha"], training["lr"]) == (form, 3, None, 0.01)
    if form == "lora":
        assert (said["entries"], said["low_rank"]) == (0, factors) == (delta.num_entries, delta.num_low_rank_parameters)
        assert len(delta.low_rank) == 12
        assert "step" not in training
        assert all(product.b.any() for product in delta.low_rank.values())
        return
    products = factors if form == "sparse_plus_low_rank" else 0
    assert (said["entries"], said["low_rank"]) == (124, products)
    assert (delta.num_entries, delta.num_low_rank_parameters) == (124, products)
    assert training["step"] == "activation"
    if products:
        assert training["product_rate"] == 0.1
        assert set(delta.overlap) == delta.linears.keys()
        assert all(product.b.any() for product in delta.low_rank.values())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["base", "gpt2"])
def test_the_file_does_what_was_measured(task, tmp_path, whole, capsys, model):
    form = whole[0]
    run = arguments(task, form, "--out", tmp_path / "o", "--eval", task / "eval.csv", "--json", model=model)
    assert main(run) == 0
    said = json.loads(capsys.readouterr().out)
    data = ["--data", str(task / "eval.csv"), "--batch-size", "8", "--json"]
    assert main(["eval", str(tmp_path / "o"), *data]) == 0
    measured = json.loads(capsys.readouterr().out)
    del measured["by_class"]
    assert measured == pytest.approx(said["quality"], abs=1e-6)
    assert main(["merge", str(tmp_path / "o"), "--out", str(tmp_path / "merged")]) == 0


def test_the_file_of_a_mixed_support_does_what_was_measured(task, tmp_path, capsys):
    """Of entries and products of other linears: products are added to the base once."""
    data = ["--out", tmp_path / "o", "--eval", task / "eval.csv", "--json"]
    run = tuning(task, "--rule", "spt", "--rank", 1, "--lr", "0.1", *data)
    run[run.index("--budget") + 1] = "10%"
    assert main(run) == 0
    said = json.loads(capsys.readouterr().out)
    assert load(tmp_path / "o").low_rank
    assert main(["eval", str(tmp_path / "o"), "--data", str(task / "eval.csv"), "--batch-size", "8", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    del measured["by_class"]
    assert measured == pytest.approx(said["quality"], abs=1e-6)


def test_the_plan_is_what_is_trained(task, tmp_path, whole):
    form, _, said = whole
    fixed = {"model": str(task / "base"), "train": task / "train.csv", "text": ["text"], "label": "label"}
    more = {} if form == "lora" else {"budget": "2%"}
    settings = load_config(
        TuneConfig,
        {**fixed, **more, "batch_size": 8, "epochs": 1, "threads": 1, "form": form, "rank": 3, "out": tmp_path / "o"},
    )
    planned = dry_run.dry_run(settings, log=str)
    assert snapshot(tmp_path) == {}
    assert (planned["entries"], planned["trained_parameters"]) == (said["entries"], said["trained"])
    assert planned["optimizer_bytes"] == 8 * (said["trained"] + said["head"])
    assert planned["lr"] == LEARNING_RATES[form]
    assert (planned["stored_columns"] is None) == (form != "sparse_lora")
    with_entries = len(planned["linears"]) if form == "sparse_plus_low_rank" else 0
    assert len(planned["low_rank"]) == (12 if form == "lora" else with_entries)
    json.dumps(planned)


@pytest.mark.slow
def test_what_it_says(task, tmp_path, whole, capsys):
    form, trained = whole[0], f"{whole[2]['trained']:,}"
    run = arguments(task, form, "--out", tmp_path / "o")
    assert main([*run, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"form {form}: {trained} values are trained beside the head, at a learning rate of 0.01" in shown
    assert (
        ("low-rank linear" in shown) == ("the full input of every low-rank linear" in shown) == (form != "sparse_lora")
    )
    assert main(run) == 0
    said = capsys.readouterr()
    larger = "" if form == "lora" else " times 1.81 for entries, which are in 55.4% of the neurons"
    assert f"a head of 34 parameters; learning rate 0.01{larger}, batches of 8\n" in said.err
    if form == "lora":
        assert f"training LoRA, {trained} parameters of rank 3 in 12 linears; in full" in said.err
        assert "selecting" not in said.err
        assert f"{tmp_path / 'o'}: low-rank products of {trained} parameters and a head of 34" in said.out
    elif form == "sparse_plus_low_rank":
        assert "allocation 'per_neuron', beside products of rank 3 at 0.1 times the learning rate; in full" in said.err
        assert f"124 entries (2.002%) and low-rank products of {whole[2]['low_rank']:,} parameters" in said.out
    else:
        assert f"allocation 'per_neuron', through {trained} parameters of rank 3; in full" in said.err
        assert f"{tmp_path / 'o'}: 124 entries (2.002%) and a head of 34" in said.out


@pytest.mark.slow
def test_two_seeds_differ(task, tmp_path, whole):
    form, path, _ = whole
    assert main(arguments(task, form, "--out", tmp_path / "a")) == 0
    assert (tmp_path / "a").read_bytes() == path.read_bytes()  # other checkpoints, in this process
    assert main(arguments(task, form, "--out", tmp_path / "b", "--seed", "1")) == 0
    assert (tmp_path / "b").read_bytes() != path.read_bytes()


def test_peft_is_asked_for_by_name_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "prepare_run", None)
    monkeypatch.setattr("taskedge.training.selection_settings.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--form: LoRA is trained by PEFT, .*: pip install 'taskedge\[peft\]'"):
        load_config(TuneConfig, {"model": "m", "train": tmp_path, "text": ["t"], "label": "l", "form": "lora"})
