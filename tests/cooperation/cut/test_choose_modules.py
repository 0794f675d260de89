"""The cloud's choice of weights: that of ``select`` on the same batches."""

from __future__ import annotations

import cut_runs
import pytest
import torch

from taskedge.backbone.fingerprint import digest
from taskedge.cooperation.cut.choose_modules import Calibration, choose
from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.protocol.payloads import decode_support
from taskedge.errors import InputError
from taskedge.selection.select import select


@pytest.fixture
def base():
    return cut_runs.cloud_base()


def calibration(base, batches=2):
    made, ids = Calibration(), []
    for seed in range(batches):
        torch.manual_seed(seed)
        ids.append({"input_ids": torch.randint(4, 30, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.int64)})
        with torch.no_grad():
            made.add(base.model.embeddings(ids[-1]["input_ids"]), ids[-1]["attention_mask"], 1000)
    return made, ids


@pytest.mark.parametrize("settings", [{"max_columns": 3}, {"rule": "activation"}, {"depth": 1}], ids=str)
def test_the_support_is_that_of_select_on_the_whole_model(base, settings):
    settings = {"rule": "taskedge", "allocation": "per_neuron", "seed": 3} | settings
    made, batches = calibration(base)
    expected = select(base.model, batches, budget=300 / sum(p.numel() for p in base.model.parameters()), **settings)
    message = choose(base, made, {**settings, "entries": 300}, log=cut_runs.quiet)
    support = decode_support(message.header["support"], message.tensors)
    assert support.linears.keys() == expected.linears.keys()
    for name, linear in support.linears.items():
        assert torch.equal(linear.flat, expected.linears[name].flat)
        assert linear.shared_input == expected.linears[name].shared_input
        assert torch.allclose(linear.input_rms, expected.linears[name].input_rms)
        weight = base.linears[name].weight
        assert torch.equal(message.tensors[f"base/{name}"], weight[linear.rows, linear.columns])


def test_low_rank_modules_come_with_digests_and_inputs(base):
    message = choose(base, calibration(base, 1)[0], {"rank": 2, "depth": 1}, log=cut_runs.quiet)
    names = [name for name in base.linears if ".1." in name]
    assert message.header["digests"] == {name: digest(base.linears[name].weight) for name in names}
    first = "encoder.layer.1.attention.self.query"
    assert message.header["shared"][first.replace("query", "value")] == first


@pytest.mark.parametrize(
    ("header", "error", "words"),
    [
        ({"rule": "gradient", "entries": 9}, InputError, "the rule 'gradient' needs gradients, .* inputs only"),
        (
            {"rule": "taskedge", "entries": 9, "max_columns": 2, "column_score": "pursuit"},
            InputError,
            "the column score 'pursuit' needs gradients, .* inputs only",
        ),
        ({"rule": "spt", "entries": 9}, InputError, "whole matrices|inputs only"),
        ({"rule": "none", "entries": 9}, InputError, "none"),
        ({"rule": ["x"]}, CutRefused, "rule"),
        ({"rule": "taskedge", "entries": -1}, CutRefused, "entries"),
        ({"rule": "taskedge", "entries": 9, "max_columns": "3"}, CutRefused, "max_columns"),
        ({"entries": 9}, CutRefused, "without a rule"),
        ({"rank": 0}, CutRefused, "rank"),
        ({"rank": 2, "depth": "1"}, CutRefused, "depth"),
    ],
)
def test_settings_that_are_none_are_refused(base, header, error, words):
    with pytest.raises(error, match=words):
        choose(base, calibration(base, 1)[0], header, log=cut_runs.quiet)


def test_a_choice_needs_data_and_has_a_cap(base):
    with pytest.raises(CutRefused, match="without calibration"):
        choose(base, Calibration(), {"rank": 2}, log=cut_runs.quiet)
    with pytest.raises(InputError, match="are the most"):
        Calibration().add(torch.zeros(4, 5, 16), torch.ones(4, 5), 19)
