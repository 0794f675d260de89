"""Every export ends with rows through both; what differs is refused, and nothing is written."""

from __future__ import annotations

import pytest
import tiny
import torch

import taskedge as te
from taskedge.delta.interop.export import EXPORTS, FILE, Export
from taskedge.delta.interop.self_check import ExportDiffers, check_rows, logits_of, self_check


@pytest.fixture
def delta():
    model = tiny.bert()
    te.install(model, te.select(model, [tiny.batch(model)], per_neuron=1))
    return te.extract(tiny.train(model))


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit, tiny.t5], ids=["bert", "gpt2", "vit", "t5"])
def test_rows_are_of_several_lengths_and_the_same_every_time(make):
    model = make()
    rows, again = check_rows(model), check_rows(model)
    assert all(torch.equal(one[key], two[key]) for one, two in zip(rows, again, strict=True) for key in one)
    assert {len(next(iter(batch.values()))) for batch in rows} >= {1, 4}
    if "input_ids" in rows[0]:
        assert len({int(count) for count in rows[0]["attention_mask"].sum(1)}) > 2
    assert all(bool(logits_of(model, batch).isfinite().all()) for batch in rows)


def test_a_plain_module_has_no_rows(tmp_path):
    model = tiny.mlp()
    te.install(model, te.select(model, [tiny.batch(model)], per_neuron=1))
    delta = te.extract(tiny.train(model))
    assert te.export(tiny.mlp(), delta, tmp_path / "a", to="peft").details["checked_rows"] == 0


def broken(source, path):
    path.write_bytes(b"x")
    return {}


@pytest.mark.parametrize("wrong", ["larger", "nan", "shape"])
def test_what_differs_is_not_written(wrong, bert, delta, tmp_path, monkeypatch):
    def reads(source, path):
        def run(batch):
            logits = logits_of(source.model, batch)
            if wrong == "shape":
                return logits[:, :1]
            return logits + (torch.nan if wrong == "nan" else 1e-3)

        return run

    monkeypatch.setitem(EXPORTS._things, "broken", Export(broken, FILE, "", reads))
    with pytest.raises(ExportDiffers, match=r"the self-check of --to broken: its logits .* nothing was written"):
        te.export(bert, delta, tmp_path / "a", to="broken")
    assert not list(tmp_path.iterdir())
    assert te.export(bert, delta, tmp_path / "a", to="broken", check=False).details == {"checked_rows": 0}


def test_padding_is_not_compared():
    """What a language model says after a text's last token has no meaning."""
    model = tiny.gpt2()
    batches = [{"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}]

    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask):
            return type("Out", (), {"logits": torch.ones(1, 3, 4)})()

    found = torch.ones(1, 3, 4)
    found[0, 2] = 9.0
    done = self_check(Words(), batches, lambda batch: found, 1e-6, "x")
    assert done == {"checked_rows": 1, "largest_difference": 0.0, "same_answers": 1.0}
    found[0, 1] = 9.0
    with pytest.raises(ExportDiffers):
        self_check(Words(), batches, lambda batch: found, 1e-6, "x")
