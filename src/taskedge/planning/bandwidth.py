"""The best split of the band once it is settled who sends what."""

from __future__ import annotations

import numpy as np

from taskedge.planning.link_models import Floats, Ints, Link
from taskedge.planning.problem import upload_seconds

SECTIONS = 31  # points tried at once inside the bracket: each round cuts it 32-fold
ROUNDS = 40  # far more than the 14 it takes to go from a bracket of 1e9 : 1 down to the last bit


def least_bandwidths(deadline: Floats | float, compute: Floats, bits: Floats, device: Ints, link: Link) -> Floats:
    """Least Hz with which each upload is done by ``deadline`` s after ``compute`` s; ``inf`` where impossible.

    All arguments broadcast. An empty payload needs nothing but ``compute <= deadline``.
    """
    with np.errstate(all="ignore"):
        slack = np.asarray(deadline - compute)
        rate = np.where(slack > 0, bits / slack, np.inf)
    need = link.least_bandwidth(device, np.where(bits > 0, rate, 0.0))
    late = (slack < 0) | ((slack <= 0) & (np.asarray(bits) > 0))
    return np.where(late, np.inf, need)


def share_bandwidth(compute: Floats, bits: Floats, device: Ints, link: Link, bandwidth: float) -> tuple[float, Floats]:
    """Splits ``bandwidth`` Hz among G uploads so that the last of them ends as early as possible.

    The total of the least bandwidths falls as the deadline grows, so the least deadline is found by cutting a
    bracket many-fold per round ("water-filling": every upload that matters ends at the same moment).

    Args:
        compute, bits, device: ``[G]`` seconds before each upload starts, its payload, and who sends it.

    Returns:
        The latency in seconds, and ``[G]`` Hz. The latency is ``inf`` where a payload has a link of rate 0.
        Band that nobody needs is handed out in proportion.
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
    for _ in range(ROUNDS * (SECTIONS // sections)):
        if late - early <= 2 * np.spacing(late):
            break
        points = np.linspace(early, late, sections + 2)[1:-1]
        enough = np.flatnonzero(need(points) <= bandwidth)
        first = int(enough[0]) if enough.size else sections
        early, late = (points[first - 1] if first else early), (points[first] if first < sections else late)
    share = least_bandwidths(late, compute, bits, device, link)
    if not np.isfinite(share).all():  # the analytic start of the bracket, missed by one rounding
        share = np.full(compute.size, bandwidth / compute.size)
    if share.sum() > 0:
        share = share * (bandwidth / share.sum())
    return float((compute + upload_seconds(link, device, bits, share)).max()), share
