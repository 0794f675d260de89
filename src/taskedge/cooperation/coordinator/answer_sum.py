"""The weighted sum of answers, one answer after another: memory for one sum, however many answers there are.

Sums of sums are sums. A coordinator of a region can add the answers of its devices and pass its sum on, and
:meth:`AnswerSum.merge` adds the sums of regions. The result is the flat sum up to the rounding of float64: addition of
float64 is exact only while all terms of an entry lie within 53 bits. Terms have 24 bits and a weight of up to 11 or so,
and the gradients of an entry may differ by more than the remaining factor of 2^18.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from taskedge.cooperation.protocol.flat_tensors import FlatLayout, flatten, layout_of
from taskedge.cooperation.protocol.quantization import QuantizedAnswer


class AnswerSum:
    """Sum of weight times tensors, and of weights, by name. Answers may hold different names."""

    def __init__(self) -> None:
        self._total = torch.zeros(0, dtype=torch.float64)
        self._weights: dict[str, float] = {}
        self._places: dict[str, tuple[int, int]] = {}
        """First number of each name in the total, and the number behind its last."""
        self._shapes: dict[str, torch.Size] = {}
        self._runs: dict[FlatLayout, list[tuple[int, int, int]]] = {}

    def add(self, weight: float, tensors: Mapping[str, Tensor]) -> None:
        """Add one answer. Each entry is summed in the order of the calls."""
        if isinstance(tensors, QuantizedAnswer):
            layout, flat = tensors.layout, tensors.flat()
        else:
            layout, flat = layout_of(tensors), flatten(tensors.values())
        self._add(layout, flat.double() * weight, dict.fromkeys(layout.names, weight))

    def merge(self, other: AnswerSum) -> None:
        """Add the sum of other answers."""
        layout = FlatLayout(tuple(other._shapes), tuple(other._shapes.values()))
        self._add(layout, other._total, other._weights)

    def mean(self) -> dict[str, Tensor]:
        """Return the mean of each name over the answers that hold it, float64."""
        return {
            name: self._total[start:end].view(self._shapes[name]) / self._weights[name]
            for name, (start, end) in self._places.items()
        }

    def _add(self, layout: FlatLayout, terms: Tensor, weights: Mapping[str, float]) -> None:
        for first, start, end in self._runs_of(layout):
            self._total[start:end] += terms[first : first + end - start]
        for name, weight in weights.items():
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def _runs_of(self, layout: FlatLayout) -> list[tuple[int, int, int]]:
        """Return where the numbers of a layout go: (first number in it, first and last place in the total)."""
        if layout in self._runs:
            return self._runs[layout]
        new = [name for name in layout.names if name not in self._places]
        for name in new:
            _, first, behind = layout.places[name]
            self._places[name] = len(self._total), len(self._total) + behind - first
            self._shapes[name] = layout.shapes[layout.places[name][0]]
            self._total = torch.cat([self._total, torch.zeros(behind - first, dtype=torch.float64)])
        runs: list[tuple[int, int, int]] = []
        for name in layout.names:
            (_, first, _), (start, end) = layout.places[name], self._places[name]
            if runs and runs[-1][2] == start:  # behind the last one in both
                runs[-1] = (*runs[-1][:2], end)
            else:
                runs.append((first, start, end))
        self._runs[layout] = runs
        return runs
