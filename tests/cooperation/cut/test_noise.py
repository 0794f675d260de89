"""What leaves is clipped by row and noisy as stated, and the ε is that of the Gaussian mechanism."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.cut.noise import Exposure, NoiseSettings, OutgoingNoise, epsilon_of, noise_clash
from taskedge.errors import InputError


def settings(**changes):
    return NoiseSettings(**({"clip_inputs": 2.0, "clip_gradient": 0.5} | changes))


@given(st.integers(1, 4), st.integers(1, 5), st.floats(0.01, 100), st.sampled_from(["inputs", "gradient"]))
def test_no_row_is_longer_than_the_clip_and_shorter_ones_are_unchanged(rows, length, size, kind):
    matrix = size * torch.randn(rows * length, 3, generator=torch.Generator().manual_seed(length))
    clip = 2.0 if kind == "inputs" else 0.5
    noise = OutgoingNoise(settings())
    found = noise.protect(kind, matrix, rows)
    before, after = (m.double().view(rows, -1).norm(dim=1) for m in (matrix, found))
    assert bool((after <= clip).all())
    assert bool((after[before > clip] > 0.999 * clip).all())
    assert torch.equal(found.view(rows, -1)[before <= clip], matrix.view(rows, -1)[before <= clip])
    assert noise.clipped[kind] == int((before > clip).sum())
    assert noise.rows[kind] == rows


def test_noise_has_its_deviation_and_differs_each_time():
    noise = OutgoingNoise(settings(noise=3.0))
    zeros = torch.zeros(100, 200)
    first, again = (noise.protect("inputs", zeros, 10) for _ in range(2))
    assert first.std().item() == pytest.approx(6.0, rel=0.02)
    assert noise.protect("gradient", zeros, 10).std().item() == pytest.approx(1.5, rel=0.02)
    assert not torch.equal(first, again)
    assert not torch.equal(first, OutgoingNoise(settings(noise=3.0)).protect("inputs", zeros, 10))
    seeded = [OutgoingNoise(settings(noise=3.0), seed=1).protect("inputs", zeros, 10) for _ in range(2)]
    assert torch.equal(*seeded)


def test_what_follows_from_messages_that_crossed_is_unchanged():
    matrix = 100 * torch.ones(4, 3)
    noise = OutgoingNoise(settings(noise=1.0))
    for kind in ("products", "input_gradients"):
        assert noise.protect(kind, matrix, 2) is matrix
    assert not noise.rows


def test_tokens_that_are_no_whole_rows_are_refused():
    with pytest.raises(InputError, match="7 tokens of 2 rows"):
        OutgoingNoise(settings()).protect("inputs", torch.zeros(7, 3), 2)


def gaussian_delta(epsilon, sensitivity, deviation):
    """Return the δ of one Gaussian release. Source: the analytic Gaussian mechanism, arXiv 1805.06530."""
    ratio = sensitivity / deviation

    def normal(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return normal(ratio / 2 - epsilon / ratio) - math.exp(epsilon) * normal(-ratio / 2 - epsilon / ratio)


@pytest.mark.parametrize(("passes", "gradients", "rows"), [(1, 0, 1), (3, 0, 8), (2, 5, 4), (1, 40, 16)])
def test_the_epsilon_is_that_of_one_release_with_the_same_total(passes, gradients, rows):
    """Gaussian releases compose to one: squared ratios of sensitivity to deviation add up."""
    noise = 30.0
    found = epsilon_of(settings(noise=noise), Exposure(passes, gradients, rows))
    squares = passes * (2 / noise) ** 2 + gradients * rows * (2 / noise) ** 2
    exact_delta = gaussian_delta(found, math.sqrt(squares), 1.0)
    assert exact_delta <= 1e-5  # never too small an ε
    assert gaussian_delta(0.8 * found, math.sqrt(squares), 1.0) > 1e-5  # and not far from it


def test_without_noise_no_epsilon_follows():
    exposure = Exposure(3, 10, 4)
    assert epsilon_of(settings(), exposure) == math.inf
    assert "without noise no ε follows" in OutgoingNoise(settings()).spent(exposure)
    noise = OutgoingNoise(settings(noise=30.0))
    noise.protect("inputs", torch.ones(4, 9), 2)
    text = noise.spent(exposure)
    assert text.startswith("clipped 2 of 2 inputs, 0 of 0 gradient; ε = ")
    assert "3 passes with the row and 10 gradients of 4 rows" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_inputs": 0.0}, "largest norm of inputs of 0"),
        ({"clip_gradient": math.inf}, "largest norm of the gradient of inf"),
        ({"noise": -1.0}, "noise of -1"),
        ({"noise": math.nan}, "noise of nan"),
        ({"delta": 1.0}, "δ of 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"clip": 1.0}, "give --clip 0"),
        ({"class_weights": "balanced"}, "depends on all labels"),
        ({"watches_held_out": True}, "leave out --early-stop"),
    ],
)
def test_settings_that_void_the_guarantee_are_named(changes, message):
    found = noise_clash(**({"clip": 0.0, "class_weights": None, "watches_held_out": False} | changes))
    assert message in found
    assert bool(found) == bool(message)
