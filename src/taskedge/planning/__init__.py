"""Planning: which device trains which blocks of the model, with which share of the bandwidth.

The input is arrays, the output is a plan. No module here imports torch. :data:`SOLVERS` has the solvers by name.

Source: LoLa DEFT (arXiv 2407.09873).
"""

from __future__ import annotations

from taskedge.planning.link_models import FixedRateLink, Link, MixedLink, SelectedLink, ShannonLink
from taskedge.planning.problem import Assignment, BlockMemory, InfeasiblePlan, JointPlan, Matching, finish_seconds
from taskedge.planning.solvers import SOLVERS
from taskedge.planning.solvers.crunch import match_blocks
from taskedge.planning.solvers.dual_ascent import allocate_jointly, ascend_dual
from taskedge.planning.solvers.exact import solve_exactly
from taskedge.planning.solvers.one_each import solve_one_each
from taskedge.planning.solvers.several import allocate_several

__all__ = [
    "SOLVERS",
    "Assignment",
    "BlockMemory",
    "FixedRateLink",
    "InfeasiblePlan",
    "JointPlan",
    "Link",
    "Matching",
    "MixedLink",
    "SelectedLink",
    "ShannonLink",
    "allocate_jointly",
    "allocate_several",
    "ascend_dual",
    "finish_seconds",
    "match_blocks",
    "solve_exactly",
    "solve_one_each",
]
