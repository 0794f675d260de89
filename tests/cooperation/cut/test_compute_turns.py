"""One pass computes at a time, and its random numbers do not depend on the others."""

from __future__ import annotations

import threading

import torch

from taskedge.cooperation.cut.compute_turns import ComputeTurns


def test_random_numbers_of_a_pass_do_not_depend_on_others():
    turns = ComputeTurns()

    def draws(seed, interrupt):
        with turns.computing(seed) as turn:
            first = torch.rand(3)
            with turn.waiting():
                interrupt()
            return torch.cat([first, torch.rand(3)])

    alone = draws(7, lambda: None)
    before = torch.get_rng_state()
    among_others = draws(7, lambda: draws(8, lambda: torch.rand(5)))
    assert torch.equal(alone, among_others)
    assert len(set(alone.tolist())) == 6
    assert not torch.equal(torch.get_rng_state(), before)  # what others draw meanwhile is theirs


def test_the_process_generator_is_used_if_there_is_one_device():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with ComputeTurns(own_random=False).computing(99):
        assert torch.equal(torch.rand(2), expected)


def test_no_two_compute_at_once():
    turns, inside, most = ComputeTurns(), [], []

    def work():
        for _ in range(20):
            with turns.computing(1) as turn:
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                with turn.waiting():
                    pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
