"""Planning: which device trains which blocks of the model, with which share of the bandwidth.

The input is arrays, the output is a plan. No module here imports torch. :data:`SOLVERS` has the solvers by name.

Source: LoLa DEFT (arXiv 2407.09873).
"""

from __future__ import annotations

from taskedge.planning.link_models import FixedRateLink, Link, MixedLink, ShannonLink
from taskedge.planning.problem import Assignment, InfeasiblePlan, JointPlan, Matching, finish_seconds
from taskedge.planning.solvers import SOLVERS
from taskedge.planning.solvers.crunch import match_blocks
from taskedge.planning.solvers.exact import solve_exactly
from taskedge.planning.solvers.joint import allocate_jointly
from taskedge.planning.solvers.several import allocate_several

__all__ = [
    "SOLVERS",
    "Assignment",
    "FixedRateLink",
    "InfeasiblePlan",
    "JointPlan",
    "Link",
    "Matching",
    "MixedLink",
    "ShannonLink",
    "allocate_jointly",
    "allocate_several",
    "finish_seconds",
    "match_blocks",
    "solve_exactly",
]
