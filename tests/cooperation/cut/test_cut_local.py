"""Whole runs with both ends in one process: against ``tune``, and what crosses."""

from __future__ import annotations

import cut_runs
import pytest
import tiny_task
import torch

from taskedge.cooperation.cut.cut_coding import coded_bytes
from taskedge.delta.file import load
from taskedge.training.tune import tune


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return cut_runs.files(tmp_path_factory.mktemp("cut"))


def difference(first, second) -> float:
    found = [float((value - second.full_parameters[name]).abs().max()) for name, value in first.full_parameters.items()]
    for name, linear in first.linears.items():
        other = second.linears[name]
        assert torch.equal(linear.rows, other.rows)
        assert torch.equal(linear.columns, other.columns)
        assert linear.base_digest == other.base_digest
        found.append(float((linear.values - other.values).abs().max()))
    assert first.linears.keys() == second.linears.keys()
    return max(found)


@pytest.mark.parametrize(
    ("changes", "bar"),
    [
        ({"max_columns": 4}, 1e-6),
        pytest.param({"max_columns": 4, "max_rows": 4}, 1e-6, marks=pytest.mark.slow),  # steps grow with fewer rows
        pytest.param({"form": "sparse_lora", "rank": 2}, 1e-6, marks=pytest.mark.slow),
    ],
    ids=["sparse", "rows", "sparse_lora"],
)
def test_twenty_steps_are_those_of_tune_on_one_machine(files, changes, bar):
    """With dropout. Sums are rounded elsewhere: W·x + ΔW·x here, (W + ΔW)·x there."""
    changes = changes | {"epochs": 4, "eval": files.folder / "eval.csv"}
    plain = tune(files.config("plain.safetensors", **changes), force=True, progress=False, log=cut_runs.quiet)
    done, _ = files.run(**changes)
    assert plain.steps == done.result.steps == 20
    first, second = load(plain.out), load(done.result.out)
    assert difference(first, second) <= bar
    assert first.provenance.base == second.provenance.base
    assert first.provenance.labels == second.provenance.labels
    assert plain.quality["accuracy"] == done.result.measures["accuracy"]


@pytest.mark.parametrize("keep", ["last", "best"])
def test_what_is_held_out_decides_and_is_said_as_in_tune(files, keep):
    """The same values kept, the same figures in the file, and the same lines."""
    held_out = {"eval": files.folder / "eval.csv", "eval_every": 2, "keep": keep, "lr": 0.3}
    changes = held_out | {"max_columns": 4, "epochs": 2}
    said, over_cut = [], []
    plain = tune(files.config("plain.safetensors", **changes), force=True, progress=False, log=said.append)
    done, _ = files.run(**changes, log=over_cut.append)
    first, second = load(plain.out).provenance.training, load(done.result.out).provenance.training
    assert first["held_out_loss"] == pytest.approx(second["held_out_loss"], abs=1e-5)
    assert first.get("kept_step") == second.get("kept_step")
    about = [[line for line in lines if "kept" in line and "eval" in line] for lines in (said, over_cut)]
    assert about[0] == about[1]
    assert bool(about[0]) == (keep == "best")
    assert any(line.startswith("kept the values of step") for line in over_cut) == (keep == "best")


def test_bytes_are_the_closed_form_and_the_wire_has_no_token_id_and_no_label(files):
    done, recorded = files.run(max_columns=4)
    counted = done.result.counted
    matrices, others = 0, set()
    for request, answer in recorded.messages:
        for message in (request, answer):
            if message.kind in ("part", "hello", "support", "plan", "have", "calibrate", "choose", "taken"):
                continue
            for name, tensor in message.tensors.items():
                if name in ("inputs", "matrix"):
                    assert tensor.dtype == torch.uint8
                    matrices += len(tensor)
                else:
                    assert (name, tensor.dtype) == ("mask", torch.bool)
            others |= message.header.keys()
    assert matrices == 4 * counted.numbers
    assert counted.training_passes == counted.passes == 5
    fields = {"session", "pass", "shape", "coding", "trains", "active", "seed", "group", "needed"}
    assert others == fields
    integers = [
        (message.kind, name)
        for pair in recorded.messages
        for message in pair
        for name, tensor in message.tensors.items()
        if not tensor.is_floating_point() and tensor.dtype not in (torch.uint8, torch.bool)
    ]
    assert {kind for kind, _ in integers} <= {"support", "plan"}  # rows and columns of weights
    text = b"".join(answer.pack() for _, answer in recorded.messages if answer.kind != "plan")
    for word in ("neg", "pos", *tiny_task.WORDS[:4]):
        assert f'"{word}"'.encode() not in text


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["bf16", "int8"])
def test_a_coding_changes_bytes_and_little_else(files, coding):
    exact, first = files.run("exact.safetensors", max_columns=4)
    coded, second = files.run("coded.safetensors", {"coding": coding}, max_columns=4)

    def inputs(recorded):
        return [answer for _, answer in recorded.messages if answer.kind == "pass"]

    for one, other in zip(inputs(first), inputs(second), strict=True):
        rows, length = one.header["shape"]
        assert len(one.tensors["inputs"]) == coded_bytes((rows * length, 16), "fp32")
        assert len(other.tensors["inputs"]) == coded_bytes((rows * length, 16), coding)
    assert coded.result.counted.numbers == exact.result.counted.numbers
    assert coded.result.train_loss == pytest.approx(exact.result.train_loss, rel=0.05)


def test_low_rank_modules_train_and_are_bound_to_the_base(files):
    done, recorded = files.run(form="lora", rank=2, lr=1e-2)
    delta = load(done.result.out)
    assert len(delta.low_rank) == 12
    assert all(float(product.b.abs().max()) > 0 for product in delta.low_rank.values())
    assert done.result.low_rank == delta.num_low_rank_parameters
    groups = {request.header["group"] for request, _ in recorded.messages if request.kind == "columns"}
    assert len(groups) == 8  # query, key and value of a block are one


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_task.gpt2])
def test_a_decoder_is_cut_as_well(tmp_path, make):
    files = cut_runs.files(tmp_path, make)
    changes = {"max_columns": 4}
    plain = tune(files.config("plain.safetensors", **changes), force=True, progress=False, log=cut_runs.quiet)
    done, _ = files.run(**changes)
    assert difference(load(plain.out), load(done.result.out)) <= 1e-6
