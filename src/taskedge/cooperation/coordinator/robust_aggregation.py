"""Aggregation that a minority of devices with wrong answers cannot steer.

Three measures, each per block, because devices of one round train different blocks:

- An answer far larger than the others is scaled down to their median norm (:func:`clip_to_median`).
- A device counts with the tokens that its rows can hold, not with those that it claims (:func:`capped_weights`).
- Instead of the mean, :func:`aggregate` takes the median or the trimmed mean of each entry, or the mean of the answers
  that are nearest to one another (multi-Krum), judged over several rounds.

Sources: norm bounding, arXiv 1911.07963; median and trimmed mean, arXiv 1803.01498; Krum, arXiv 1703.02757; that a
defense without memory cannot tell a small bias from the noise of batches, arXiv 2012.10333; the memory of scores, this
project. In a first round the rules equal ``aggregate_median``, ``aggregate_trimmed_avg`` and ``aggregate_krum`` of
Flower on answers that all hold the same names; Flower has no form for answers of different blocks.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from taskedge.cooperation.coordinator.aggregation import weighted_mean

MIN_ANSWERS = 3
"""Answers below which a block has no majority, so that every rule is the weighted mean."""
MIN_KRUM = 5
"""Answers below which Krum can leave none out (it needs 2f + 3), so that it is the median."""
MEMORY = 0.95
"""Weight of a score one round later: Krum judges a device by its last twenty or so answers."""
MAX_WEIGHT_TO_MEDIAN = 2.0
"""Most tokens per row that a device counts with, as a multiple of the median answer's."""

Answer = tuple[float, Mapping[str, Tensor]]
"""Weight above 0, and tensors by name."""


class KrumScores:
    """How far each device's answers are from the others', block by block, as a running mean over rounds.

    In one round a wrong answer of ordinary size differs from honest ones by less than these do from one another,
    because each is a gradient of few rows. Over rounds the noise averages out, and the difference stays.
    """

    def __init__(self) -> None:
        self._scores: dict[str, list[float]] = {}
        """[sum of decayed scores, sum of their weights] by ``BLOCK/DEVICE``."""

    def update(self, block: int, devices: Sequence[str], scores: Sequence[float]) -> list[float]:
        """Add the scores of a round, and return the running ones. A device without a name has no memory.

        Scores are compared as multiples of the round's median, since gradients shrink while a model learns.
        """
        median = statistics.median(scores) or 1.0
        running = []
        for device, score in zip(devices, scores, strict=True):
            total, weight = self._scores.get(f"{block}/{device}", (0.0, 0.0)) if device else (0.0, 0.0)
            total, weight = MEMORY * total + score / median, MEMORY * weight + 1.0
            if device:
                self._scores[f"{block}/{device}"] = [total, weight]
            running.append(total / weight)
        return running

    def state_dict(self) -> dict[str, list[float]]:
        """Return the scores, JSON-able."""
        return {key: list(pair) for key, pair in self._scores.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._scores = {key: [float(total), float(weight)] for key, (total, weight) in state.items()}


def aggregate(
    rule: str,
    answers: Sequence[Answer],
    block_of: Mapping[str, int],
    devices: Sequence[str] = (),
    scores: KrumScores | None = None,
) -> tuple[dict[str, Tensor], list[int]]:
    """Combine the answers of a round, name by name.

    Args:
        rule: ``mean``, weighted; ``median`` of each entry; ``trimmed``, the mean of each entry without the largest and
            the smallest third of the answers; or ``krum``, the weighted mean of the two thirds of the answers with the
            smallest distances to their neighbors. The median and the trimmed mean ignore weights.
        answers: The answers, with the same names wherever they hold the same block.
        block_of: Block of each name.
        devices: Whose answers they are; empty: not known.
        scores: Of earlier rounds, for ``krum``; those of this round are added. None: only this round counts.

    Returns:
        float64 tensors by name, and the blocks that got the mean because fewer than ``MIN_ANSWERS`` answers hold them.
    """
    if rule == "mean":
        return weighted_mean(answers), []
    combined: dict[str, Tensor] = {}
    too_few: list[int] = []
    scores = scores or KrumScores()
    for block, names in _names_by_block(answers, block_of).items():
        places = [place for place, (_, tensors) in enumerate(answers) if names[0] in tensors]
        holders = [(answers[place][0], {name: answers[place][1][name] for name in names}) for place in places]
        if len(holders) < MIN_ANSWERS:
            too_few.append(block)
            combined |= weighted_mean(holders)
        elif rule == "krum" and len(holders) >= MIN_KRUM:
            whose = [devices[place] if devices else "" for place in places]
            running = scores.update(block, whose, krum_scores(holders))
            combined |= weighted_mean([holders[index] for index in _lowest(running, len(holders) - _wrong(holders))])
        else:
            cut = len(holders) // 3 if rule == "trimmed" else (len(holders) - 1) // 2
            for name in names:
                stacked = torch.stack([tensors[name].double() for _, tensors in holders]).sort(dim=0).values
                combined[name] = stacked[cut : len(holders) - cut].mean(dim=0)
    return combined, sorted(too_few)


def krum_scores(answers: Sequence[Answer]) -> list[float]:
    """Return the sum of each answer's squared distances to its n - f - 2 nearest neighbors, of n answers, f wrong."""
    points = torch.stack([torch.cat([t.double().flatten() for t in tensors.values()]) for _, tensors in answers])
    squares = points.square().sum(dim=1)
    distances = (squares[:, None] + squares[None, :] - 2 * points @ points.T).clamp_min(0)
    distances.fill_diagonal_(0)  # itself comes first, and is left out
    nearest = distances.sort(dim=1).values[:, 1 : len(answers) - _wrong(answers) - 1]
    return [float(score) for score in nearest.sum(dim=1)]


def _wrong(answers: Sequence[Answer]) -> int:
    """Return how many of the answers Krum assumes to be wrong, and leaves out: a third, if n >= 2f + 3 holds."""
    return min(len(answers) // 3, (len(answers) - 3) // 2)


def _lowest(scores: Sequence[float], count: int) -> list[int]:
    """Return the places of the ``count`` lowest scores, in their order."""
    return sorted(sorted(range(len(scores)), key=lambda place: scores[place])[:count])


def clip_factors(
    norms: Sequence[Mapping[int, float]], running: Mapping[int, float], factor: float
) -> list[dict[int, float]]:
    """Return by which factor each answer's blocks are to be scaled down; blocks that stay are not in it.

    A block whose norm exceeds ``factor`` times the median is scaled to the median. The median is that of the round's
    answers; of fewer than three answers it is the smaller of their lower one and the running one. Where it is 0, it is
    the running one.

    Args:
        norms: l2 norms of an answer's update per block, for each answer.
        running: Median norm per block of earlier answers.
        factor: See above.
    """
    in_round: dict[int, list[float]] = {}
    for of_answer in norms:
        for block, norm in of_answer.items():
            in_round.setdefault(block, []).append(norm)
    medians = {}
    for block, values in in_round.items():
        medians[block] = statistics.median_low(values)
        if running.get(block) and (len(values) < MIN_ANSWERS or not medians[block]):
            medians[block] = min(medians[block] or running[block], running[block])
    return [
        {block: medians[block] / norm for block, norm in of_answer.items() if norm > factor * medians[block] > 0}
        for of_answer in norms
    ]


def clip_to_median(
    tensors: Mapping[str, Tensor],
    factors: Mapping[int, float],
    block_of: Mapping[str, int],
    values: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return an answer's tensors with the update of each block scaled by its factor.

    Args:
        tensors: Gradients, or new values.
        factors: From :func:`clip_factors`.
        block_of: Block of each name.
        values: The coordinator's values, of which ``tensors`` are new ones; None: ``tensors`` are gradients.
    """
    clipped = dict(tensors)
    for name, tensor in tensors.items():
        factor = factors.get(block_of[name])
        if factor is not None:
            start = 0.0 if values is None else values[name].double()
            clipped[name] = start + factor * (tensor.double() - start)
    return clipped


def capped_weights(tokens: Sequence[int], rows: Sequence[int], running: float) -> list[float]:
    """Return the weight of each answer: its tokens, but per row at most twice those of the median answer.

    Args:
        tokens: Tokens that each device claims.
        rows: Rows of each task; 0: not known, and not capped.
        running: Median tokens per row of earlier answers; 0: there are none.
    """
    per_row = [claimed / count for claimed, count in zip(tokens, rows, strict=True) if count]
    if not per_row:
        return [float(claimed) for claimed in tokens]
    median = statistics.median_low(per_row)
    if len(per_row) < MIN_ANSWERS and running:
        median = min(median, running)
    most = MAX_WEIGHT_TO_MEDIAN * median
    return [
        min(float(claimed), most * count if count else claimed) for claimed, count in zip(tokens, rows, strict=True)
    ]


def _names_by_block(answers: Sequence[Answer], block_of: Mapping[str, int]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for _, tensors in answers:
        for name in tensors:
            of_block = names.setdefault(block_of[name], [])
            if name not in of_block:
                of_block.append(name)
    return names
