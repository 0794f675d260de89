"""The split of the band against bisection, and the edges of the least bandwidth."""

from __future__ import annotations

import numpy as np
import pytest
from fleets import latency_of, least_hertz
from hypothesis import given, settings
from hypothesis import strategies as st

from taskedge.planning import FixedRateLink, ShannonLink
from taskedge.planning.bandwidth import least_bandwidths, share_bandwidth
from taskedge.planning.problem import upload_seconds


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_the_split_is_optimal(uploads, seed):
    rng = np.random.default_rng(seed)
    compute, bits = rng.uniform(0, 2, uploads), rng.uniform(1e4, 1e6, uploads)
    link, device = ShannonLink(10 ** rng.uniform(5, 8, uploads)), np.arange(uploads)
    latency, share = share_bandwidth(compute, bits, device, link, 1e6)
    parts = list(zip(compute, bits, link.snr_hz, strict=True))
    assert latency == pytest.approx(latency_of(parts, 1e6), rel=1e-6)
    assert share.sum() == pytest.approx(1e6)
    assert (compute + upload_seconds(link, device, bits, share)).max() == pytest.approx(latency)


def test_least_bandwidths_meet_the_deadline():
    link = ShannonLink(np.array([1e6, 1e7]))
    need = least_bandwidths(3.0, np.array([1.0, 2.5]), np.array([1e5, 1e5]), np.arange(2), link)
    assert need == pytest.approx([least_hertz(1e6, 1e5 / 2), least_hertz(1e7, 1e5 / 0.5)], rel=1e-6)


def test_impossible_deadlines_and_empty_payloads():
    link, device = ShannonLink(np.array([1e6])), np.zeros(4, np.intp)
    need = least_bandwidths(1.0, np.array([0.5, 1.0, 1.0, 1.5]), np.array([0.0, 0.0, 1.0, 0.0]), device, link)
    assert need.tolist() == [0.0, 0.0, np.inf, np.inf]


def test_a_device_that_cannot_send_makes_the_round_endless():
    latency, share = share_bandwidth(np.zeros(1), np.ones(1), np.zeros(1, np.intp), ShannonLink(np.zeros(1)), 1e6)
    assert latency == np.inf
    assert share.tolist() == [0.0]


def test_wired_uploads_need_no_band():
    link = FixedRateLink(np.array([1e5, 2e5]))
    latency, share = share_bandwidth(np.array([1.0, 1.0]), np.array([1e5, 1e5]), np.arange(2), link, 1e6)
    assert latency == pytest.approx(2.0)
    assert share.tolist() == [0.0, 0.0]
