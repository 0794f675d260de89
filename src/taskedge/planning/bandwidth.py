"""Optimal split of the band among given uploads."""

from __future__ import annotations

import numpy as np

from taskedge.planning.link_models import Floats, Ints, Link
from taskedge.planning.problem import upload_seconds

SECTIONS = 31
"""Points that are tried at once within the bracket. Each round cuts it 32-fold."""

MAX_ROUNDS = 40
"""Far more than the 14 rounds from a bracket of 1e9 : 1 down to the last bit."""


def least_bandwidths(deadline: Floats | float, compute: Floats, bits: Floats, device: Ints, link: Link) -> Floats:
    """Return the least Hz with which each upload that starts at ``compute`` s ends by ``deadline`` s.

    All arguments broadcast. The result is ``inf`` if no bandwidth is enough. An empty payload needs no bandwidth, only
    ``compute <= deadline``.
    """
    with np.errstate(all="ignore"):
        slack = np.asarray(deadline - compute)
        rate = np.where(slack > 0, bits / slack, np.inf)
    need = link.least_bandwidth(device, np.where(bits > 0, rate, 0.0))
    late = (slack < 0) | ((slack <= 0) & (np.asarray(bits) > 0))
    return np.where(late, np.inf, need)


def share_bandwidth(compute: Floats, bits: Floats, device: Ints, link: Link, bandwidth: float) -> tuple[float, Floats]:
    """Split ``bandwidth`` Hz among G uploads so that the last of them ends as early as possible.

    The sum of the least bandwidths falls as the deadline grows. The least feasible deadline is found by cutting a
    bracket into many sections per round ("water-filling": all critical uploads end at the same time).

    Args:
        compute: ``[G]`` seconds before each upload starts.
        bits: ``[G]`` payloads.
        device: ``[G]`` senders.
        link: the uplinks.
        bandwidth: Hz in total.

    Returns:
        The latency in seconds, and ``[G]`` Hz. The latency is ``inf`` if a payload has a link of rate 0. Bandwidth
        that no upload needs is distributed in proportion.
    """
    early = float((compute + upload_seconds(link, device, bits, np.inf)).max())
    late = float((compute + upload_seconds(link, device, bits, bandwidth / compute.size)).max())
    if not np.isfinite(late):
        return np.inf, np.zeros(compute.size)

    def need(deadline: Floats) -> Floats:
        return np.asarray(least_bandwidths(deadline[:, None], compute, bits, device, link).sum(axis=1))

    sections = int(np.clip(2_000_000 // compute.size, 1, SECTIONS))
    if need(np.array([early]))[0] <= bandwidth:
        late = early
    for _ in range(MAX_ROUNDS * (SECTIONS // sections)):
        if late - early <= 2 * np.spacing(late):
            break
        points = np.linspace(early, late, sections + 2)[1:-1]
        enough = np.flatnonzero(need(points) <= bandwidth)
        first = int(enough[0]) if enough.size else sections
        if first:
            early = points[first - 1]
        if first < sections:
            late = points[first]
    share = least_bandwidths(late, compute, bits, device, link)
    if not np.isfinite(share).all():  # the analytic start of the bracket, missed by one rounding
        share = np.full(compute.size, bandwidth / compute.size)
    if share.sum() > 0:
        share = share * (bandwidth / share.sum())
    return float((compute + upload_seconds(link, device, bits, share)).max()), share
