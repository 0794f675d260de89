"""The merged model is a plain folder with the delta's values, to the last bit."""

import pytest
import tiny
import transformers

import taskedge as te
from taskedge.errors import InputError


def trained(model):
    te.install(model, te.select(model, rule="magnitude", per_neuron=1))
    tiny.train(model)
    return te.extract(model)


def test_from_pretrained_loads_the_applied_weights(bert, tmp_path):
    delta = trained(tiny.bert())
    te.export(bert, delta, tmp_path / "merged", to="merged")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    expected = te.apply(bert, delta)
    assert tiny.same_bits(loaded.state_dict(), expected.state_dict())


def test_the_processor_is_saved_too(bert, tmp_path):
    class Processor:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    te.export(bert, trained(tiny.bert()), tmp_path / "merged", to="merged", processor=Processor())
    assert (tmp_path / "merged" / "tokenizer.json").read_text() == "{}"


def test_other_models_have_no_folder_format(mlp, tmp_path):
    with pytest.raises(InputError, match="is not a Hugging Face model, so it has no folder format"):
        te.export(mlp, trained(tiny.mlp()), tmp_path / "merged", to="merged")
    assert list(tmp_path.iterdir()) == []
