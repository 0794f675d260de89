"""Which devices' statistics are summed: those of this model, at the scale of the others."""

from __future__ import annotations

from dataclasses import replace

import tiny_fleet
import tiny_task
import torch

from taskedge.backbone.candidates import candidates
from taskedge.cooperation.coordinator.statistics_audit import audit_statistics, own_statistics
from taskedge.cooperation.protocol.payloads import sum_statistics
from taskedge.selection.statistics import measure

LENGTH = 16
QUERY = "bert.encoder.layer.0.attention.self.query"


def part(seed):
    model = tiny_fleet.model()
    rows = tiny_fleet.rows(12, seed)
    batches = [tiny_fleet.collate(rows[start : start + 4]) for start in range(0, 12, 4)]
    return dict(measure(model, candidates(model), batches))


def parts(count=3, **liars):
    return {f"d{n}": part(n) for n in range(count)} | liars


def scaled(statistics, factor, tokens=1.0):
    return {
        name: replace(linear, tokens=round(linear.tokens * tokens), input_squares=linear.input_squares * factor)
        for name, linear in statistics.items()
    }


def own():
    return own_statistics(tiny_fleet.model(), LENGTH, 0)


def test_honest_statistics_pass_to_the_last_bit():
    given = parts()
    audit = audit_statistics(given, own(), 12 * LENGTH, LENGTH)
    assert (audit.refused, audit.capped) == ({}, {})
    for device, statistics in given.items():
        assert audit.accepted[device] is statistics


def test_the_random_row_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    assert own().keys() == part(0).keys()
    assert torch.equal(torch.get_rng_state(), before)


def test_another_shared_input_is_refused_with_and_without_a_model_of_ones_own():
    liar, name = part(5), "bert.encoder.layer.0.attention.self.value"
    liar[name] = replace(liar[name], shared_input=name)
    for mine in (own(), None):
        audit = audit_statistics(parts(a=liar), mine, 1e9, LENGTH)
        assert audit.refused == {"a": f"statistics of linear {name!r} with the input of {name!r}, not of {QUERY!r}"}
        assert audit.accepted.keys() == {"d0", "d1", "d2"}


def test_one_device_alone_is_compared_with_the_model():
    audit = audit_statistics({"a": scaled(part(5), 1e6)}, own(), 1e9, LENGTH)
    assert "mean square of" in audit.refused["a"]
    assert audit_statistics({"a": part(5)}, own(), 1e9, LENGTH).accepted.keys() == {"a"}


def test_devices_are_compared_with_their_median():
    audit = audit_statistics(parts(a=scaled(part(5), 20.0)), own(), 1e9, LENGTH)
    assert "times the energy per token of the median device" in audit.refused["a"]
    audit = audit_statistics(parts(a=scaled(part(5), 5.0)), own(), 1e9, LENGTH)
    assert audit.refused == {}


def test_tokens_are_bounded_by_the_rows_and_capped_by_the_others():
    liar = scaled(part(5), 20.0, tokens=20.0)  # the energy per token is an honest one
    audit = audit_statistics(parts(a=liar), own(), 12 * LENGTH, LENGTH)
    assert "its rows hold 192 at most" in audit.refused["a"]
    audit = audit_statistics(parts(a=liar), own(), 1e9, LENGTH)
    assert "counts with" in audit.capped["a"]
    name, linear = next(iter(liar.items()))
    tokens = sorted(statistics[name].tokens for statistics in [*parts().values(), liar])
    assert audit.accepted["a"][name].tokens == round(4 * (tokens[1] + tokens[2]) / 2)
    ratio = audit.accepted["a"][name].input_squares / linear.input_squares
    assert torch.allclose(ratio, torch.full_like(ratio, float(ratio[0])))
    assert float(ratio[0]) < 0.3


def test_a_model_of_images_gets_pixels(tmp_path):
    import transformers

    model = transformers.ViTForImageClassification.from_pretrained(tiny_task.vit(tmp_path / "vit")).eval()
    assert own_statistics(model, LENGTH, 0).keys() == candidates(model).keys()


def test_a_model_of_other_inputs_has_no_statistics_of_its_own():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    assert own_statistics(model, LENGTH, 0) is None


def test_an_expert_that_did_not_run_here_is_checked_against_the_other_devices():
    """Otherwise one device could name another input for it, and the sum of the statistics would end the run."""
    name, mine = "bert.encoder.layer.0.attention.self.value", own()
    mine[name] = replace(
        mine[name], shared_input=name, tokens=0, input_squares=torch.zeros_like(mine[name].input_squares)
    )
    liar, much = part(5), part(6)
    liar[name] = replace(liar[name], shared_input=name)
    much[name] = replace(much[name], tokens=10**9, input_squares=much[name].input_squares * 1e7)
    audit = audit_statistics(parts(a=liar, b=much), mine, 12 * LENGTH, LENGTH)
    assert audit.refused == {
        "a": f"statistics of linear {name!r} with the input of {name!r}, not of {QUERY!r}",
        "b": f"statistics of linear {name!r} over 1,000,000,000 tokens: its rows hold {12 * LENGTH} at most",
    }
    assert sum_statistics(list(audit.accepted.values()))[name].shared_input == QUERY
