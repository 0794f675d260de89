"""Settings of a run over the cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskedge.cooperation.cut.cut_settings import CutSettings, check_for_cut
from taskedge.errors import InputError
from taskedge.training.tune_config import TuneConfig


def config(**changes):
    return TuneConfig(model="base", train=Path("train.csv"), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"form": "taps"}, "--form taps: .* give sparse, sparse_lora or lora"),
        ({"bf16": True}, "--bf16"),
        ({"head_warmup": True}, "--head-warmup"),
        ({"rotate": 2}, "--rotate"),
        ({"rule": "gradient"}, "--rule gradient reads .* choose activation or .* or taskedge$"),
        ({"rule": "spt"}, "--rule spt reads"),
        ({"rule": "change"}, "--rule change reads"),
        ({"max_columns": 4, "column_score": "pursuit"}, "--column-score pursuit reads .* choose activation or entries"),
        ({"optimizer": "mezo", "lr": 1e-3}, "--optimizer"),
    ],
)
def test_settings_that_need_the_base_here_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        check_for_cut(config(**changes), CutSettings())


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, "--clip 0"), ({"clip": 0, "class_weights": "balanced"}, "--class-weights")],
)
def test_noise_needs_settings_that_keep_its_promise(changes, words):
    noisy = CutSettings(noise=1.0, clip_inputs=1.0, clip_gradient=1.0)
    with pytest.raises(InputError, match=words):
        check_for_cut(config(**changes), noisy)


def test_noise_does_not_cover_idle_modules():
    noisy = CutSettings(noise=1.0, clip_inputs=1.0, clip_gradient=1.0, active_share=0.5)
    with pytest.raises(InputError, match="--active-share"):
        check_for_cut(config(clip=0), noisy)


@pytest.mark.parametrize("changes", [{"noise": 1.0}, {"clip_inputs": 1.0}])
def test_noise_is_a_multiple_of_clips(changes):
    with pytest.raises(InputError, match="--noise"):
        CutSettings(**changes)


def test_plain_settings_pass():
    check_for_cut(config(max_columns=8, max_rows=8), CutSettings(active_share=0.125, coding="int8"))
