"""Optimal split of the band among given uploads."""

from __future__ import annotations

import numpy as np

from taskedge.planning.link_models import Floats, Ints, Link
from taskedge.planning.problem import upload_seconds

SECTIONS = 31
"""Points that are tried at once within the bracket until both of its ends have a finite need."""

MAX_ROUNDS = 100
"""Far more than is needed: halving alone ends after 60 rounds."""


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

    The sum of the least bandwidths falls as the deadline grows, and is convex. The least feasible deadline is found by
    cutting a bracket into many sections, then by secants from both sides, which convexity keeps on their sides
    ("water-filling": all critical uploads end at the same time).

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

    if need(np.array([early]))[0] <= bandwidth:
        late = early
    above, below = np.inf, np.nan  # Hz beyond the band at the ends of the bracket
    before: tuple[float, float] | None = None  # an earlier start of the bracket, and its excess
    sections = int(np.clip(2_000_000 // compute.size, 3, SECTIONS))
    for _ in range(MAX_ROUNDS):
        if late - early <= 2 * np.spacing(late):
            break
        points = np.linspace(early, late, sections + 2)[1:-1]
        if np.isfinite(above) and np.isfinite(below):
            points = _secants(early, above, late, below, before)
        excess = need(points) - bandwidth
        enough = np.flatnonzero(excess <= 0)
        first = int(enough[0]) if enough.size else points.size
        if first:
            before = (early, above) if np.isfinite(above) else None
            early, above = float(points[first - 1]), float(excess[first - 1])
        if first < points.size:
            late, below = float(points[first]), float(excess[first])
    share = least_bandwidths(late, compute, bits, device, link)
    if not np.isfinite(share).all():  # the analytic start of the bracket, missed by one rounding
        share = np.full(compute.size, bandwidth / compute.size)
    if share.sum() > 0:
        share = share * (bandwidth / share.sum())
    return float((compute + upload_seconds(link, device, bits, share)).max()), share


def _secants(early: float, above: float, late: float, below: float, before: tuple[float, float] | None) -> Floats:
    """Return deadlines within the bracket: where a chord and an extended chord meet the band, and the middle."""
    points = [0.5 * (early + late), early + (late - early) * above / (above - below)]
    if before is not None and before[1] > above:
        points.append(early + (early - before[0]) * above / (before[1] - above))
    inside = [min(max(point, np.nextafter(early, late)), np.nextafter(late, early)) for point in points]
    return np.unique(inside)
