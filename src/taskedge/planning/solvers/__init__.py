"""Registry of the solvers. A solver is one function with one decorator.

The call is ``solver(compute, fits, bits, link, bandwidth)``. The result is a
:class:`~taskedge.planning.problem.JointPlan`.
"""

from __future__ import annotations

from collections.abc import Callable

from taskedge.planning.problem import JointPlan
from taskedge.registry import Registry

Solver = Callable[..., JointPlan]
SOLVERS: Registry[Solver] = Registry("solver", __name__)
SOLVERS.deprecate("joint", "exact")  # the default up to 0.1: an ascent that ended at or above the optimum
