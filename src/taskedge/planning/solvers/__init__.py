"""Solvers by name: each is one function with one decorator.

Every registered solver is called as ``solver(compute, fits, bits, link, bandwidth)`` and returns a
:class:`~taskedge.planning.problem.JointPlan`.
"""

from __future__ import annotations

from collections.abc import Callable

from taskedge.planning.problem import JointPlan
from taskedge.registry import Registry

Solver = Callable[..., JointPlan]
SOLVERS: Registry[Solver] = Registry("solver", __name__)
