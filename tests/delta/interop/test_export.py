"""All exports are atomic, check the base, and never overwrite a user's files."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers
from tiny_task import snapshot

import taskedge as te
from taskedge.delta.apply import applied_to
from taskedge.delta.interop.export import EXPORTS, MODEL, exports
from taskedge.errors import BaseMismatch, InputError, UnknownName


@pytest.fixture
def delta():
    model = tiny.bert()
    te.install(model, te.select(model, [tiny.batch(model)], per_neuron=1))
    return te.extract(tiny.train(model))


@pytest.mark.parametrize("to", ["merged", "peft", "lora", "patch"])
class TestEveryExport:
    def test_the_model_is_left_as_it_was(self, to, bert, delta, tmp_path):
        before = tiny.state(bert)
        te.export(bert, delta, tmp_path / "out", to=to)
        assert tiny.same_bits(bert.state_dict(), before)
        assert applied_to(bert) is None

    def test_a_model_that_carries_the_delta_gives_the_same(self, to, bert, delta, tmp_path):
        te.export(bert, delta, tmp_path / "one", to=to)
        te.export(te.apply(bert, delta), delta, tmp_path / "two", to=to)
        found = snapshot(tmp_path)
        both = [{name[3:]: content for name, content in found.items() if name[:3] == out} for out in ("one", "two")]
        assert both[0] == both[1]
        assert applied_to(bert) is not None

    def test_what_is_there_stays(self, to, bert, delta, tmp_path):
        te.export(bert, delta, tmp_path / "out", to=to)
        before = snapshot(tmp_path)
        with pytest.raises(InputError, match=r"out exists: name another (file|folder) with --out, or replace it"):
            te.export(bert, delta, tmp_path / "out", to=to)
        assert snapshot(tmp_path) == before
        with pytest.raises(
            InputError, match=r"or replace it with --replace \(--force skips the check of the base only"
        ):
            te.export(bert, delta, tmp_path / "out", to=to, force=True)
        assert snapshot(tmp_path) == before
        te.export(bert, delta, tmp_path / "out", to=to, replace=True)
        assert snapshot(tmp_path) == before

    def test_replaces_only_its_own_kind(self, to, bert, delta, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("precious")
        before = snapshot(tmp_path)
        with pytest.raises(InputError, match="so --replace keeps it"):
            te.export(bert, delta, tmp_path / "mine", to=to, replace=True)
        assert snapshot(tmp_path) == before

    def test_another_base(self, to, delta, tmp_path):
        other = tiny.bert()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.01)
        with pytest.raises(BaseMismatch, match="wrong base"):
            te.export(other, delta, tmp_path / "out", to=to)
        assert snapshot(tmp_path) == {}
        done = te.export(other, delta, tmp_path / "out", to=to, force=True)
        assert done.forced == "12 of 12 linears hold other values than the delta's base"
        assert applied_to(other) is None

    def test_no_space_left(self, to, bert, delta, tmp_path, monkeypatch):
        te.export(bert, delta, tmp_path / "out", to=to)
        before, write = snapshot(tmp_path), EXPORTS[to].write

        def full(source, path, **options):
            write(source, path, **options)
            raise OSError(28, "No space left on device")

        monkeypatch.setitem(EXPORTS._things, to, type(EXPORTS[to])(full, EXPORTS[to].makes, EXPORTS[to].loads))
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            te.export(bert, delta, tmp_path / "out", to=to, replace=True)
        assert snapshot(tmp_path) == before
        assert applied_to(bert) is None


def test_an_unknown_form(bert, delta, tmp_path):
    with pytest.raises(
        UnknownName, match=r"unknown export 'pefd'; did you mean 'peft'\? \(known: executorch, gguf, .*peft\)"
    ):
        te.export(bert, delta, tmp_path / "out", to="pefd")


def test_a_form_is_one_registration(bert, delta, tmp_path, monkeypatch):
    monkeypatch.setattr(EXPORTS, "_things", dict(EXPORTS._things))

    @exports("count", makes=MODEL, loads="{auto}: {path!r}")
    def count(source, path):
        (path / "config.json").write_text(str(source.delta.num_entries))
        return {"base": source.base}

    done = te.export(bert, delta, tmp_path / "out", to="count", base="a/base")
    assert (tmp_path / "out" / "config.json").read_text() == str(delta.num_entries)
    assert done.details == {"base": "a/base", "checked_rows": 0}
    assert done.bytes == len(str(delta.num_entries))
    assert done.loads == f"AutoModelForSequenceClassification: {str(tmp_path / 'out')!r}"


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit], ids=["bert", "gpt2", "vit"])
def test_the_returned_line_of_python_loads_a_merged_model(make, tmp_path):
    model = make()
    te.install(model, te.select(model, [tiny.batch(model)], per_neuron=1))
    trained = te.extract(tiny.train(model))
    done = te.export(make(), trained, tmp_path / "merged", to="merged")
    auto, arguments = done.loads.split(".", 1)
    loaded = eval(f"kind.{arguments}", {"kind": getattr(transformers, auto)})
    assert tiny.same_bits(loaded.state_dict(), te.apply(make(), trained).state_dict())


def test_a_plain_module_has_no_folder_form(mlp, tmp_path):
    te.install(mlp, te.select(mlp, [tiny.batch(mlp)], per_neuron=1))
    with pytest.raises(InputError, match="Mlp is not a Hugging Face model"):
        te.export(tiny.mlp(), te.extract(mlp), tmp_path / "out", to="merged")
    assert snapshot(tmp_path) == {}
