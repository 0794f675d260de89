"""The doctor finds what is wrong, and only that. What it times decides no test."""

from __future__ import annotations

import sys

import pytest
import torch

from taskedge.forms import kernels
from taskedge.profiling import doctor
from taskedge.profiling.doctor import BROKEN, OK, SLOW, check_installation


@pytest.mark.slow
def test_all_is_right_here():
    findings = {finding.subject: finding for finding in check_installation()}
    assert list(findings) == [
        "versions", "threads", "gradients", "kernel", "allocation", "memory", "bfloat16",
    ]  # fmt: skip
    assert findings["gradients"].state == findings["versions"].state == OK
    assert torch.__version__.split("+")[0] in findings["versions"].found
    for finding in findings.values():
        assert finding.state != BROKEN
        assert bool(finding.advice) == (finding.state != OK)


def test_without_numba_the_kernel_is_slow(monkeypatch):
    monkeypatch.setattr(type(kernels.KERNELS["numba"]), "supports", lambda self, grad_output, columns, index: False)
    right, speed = doctor._kernels()
    assert right.state == OK
    assert speed.state == SLOW
    assert "pip install 'taskedge[fast]'" in speed.advice


def test_wrong_gradients_are_broken(monkeypatch):
    monkeypatch.setattr(doctor, "entry_gradient", lambda dy, x, index: torch.zeros(len(index.rows)))
    right = doctor._kernels()[0]
    assert right.state == BROKEN
    assert "do not train on this machine" in right.advice


@pytest.mark.parametrize(
    ("threads", "cores", "state", "advice"),
    [(1, 1, OK, ""), (1, 4, SLOW, "--threads 4 uses them all"), (8, 4, SLOW, "--threads 4")],
)
def test_threads(monkeypatch, threads, cores, state, advice):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(doctor, "threads_that_pay", lambda number: number)
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    finding = doctor._threads()
    assert finding.state == state
    assert advice in finding.advice


@pytest.mark.parametrize(("free", "state"), [(None, OK), (8e9, OK), (100e6, SLOW)])
def test_memory(monkeypatch, free, state):
    monkeypatch.setattr(doctor, "available_memory", lambda: free)
    assert doctor._memory().state == state


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_available_memory():
    assert 0 < doctor.available_memory() < 2**50


def test_threads_on_a_busy_machine(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(doctor, "threads_that_pay", lambda _: 1)
    finding = doctor._threads()
    assert (finding.state, finding.advice) == (SLOW, "the machine is busy: tune takes one, as --threads 1")
