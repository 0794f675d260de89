"""``taskedge doctor``: passes here, and says what is slow or broken."""

from __future__ import annotations

import json

import pytest
import torch

from taskedge.forms import kernels
from taskedge.profiling import doctor


@pytest.mark.slow
def test_it_passes_here(taskedge):
    ended = taskedge("doctor")
    assert ended.code == 0
    assert ended.err == ""
    for subject in ("versions", "threads", "gradients", "kernel", "allocation", "memory", "bfloat16"):
        assert f" {subject} " in ended.out


@pytest.mark.slow
def test_numba_hidden(taskedge, monkeypatch):
    monkeypatch.setattr(type(kernels.KERNELS["numba"]), "supports", lambda self, grad_output, columns, index: False)
    ended = taskedge("doctor", "--json")
    assert ended.code == 0
    kernel = next(finding for finding in json.loads(ended.out) if finding["subject"] == "kernel")
    assert kernel["state"] == "slow"
    assert "taskedge[fast]" in kernel["advice"]


@pytest.mark.slow
def test_broken_arithmetic(taskedge, monkeypatch):
    monkeypatch.setattr(doctor, "entry_gradient", lambda dy, x, index: torch.zeros(len(index.rows)))
    ended = taskedge("doctor")
    assert ended.code == 2
    assert "broken gradients" in ended.out
    assert "-> do not train on this machine" in ended.out
