"""Sizes and traffic of what is stored."""

from __future__ import annotations

from taskedge.placement.chip_file import ChipUse
from taskedge.placement.stored_tensors import ActivationTraffic, BaseTensor, TaskSize, masked_bits, stored_tensors

BASE = [BaseTensor("w", 1000, True, 3000), BaseTensor("bias", 10, False, 10)]


def test_dense_and_masked_bits():
    assert masked_bits(100, 0.25, 8) == 100 + 25 * 8
    dense, bias = stored_tensors(BASE, None, [], ChipUse(weight_bits=8))
    assert (dense.bits, dense.read_bits, bias.bits) == (8000, 24_000, 80)
    sparse, bias = stored_tensors(BASE, None, [], ChipUse(weight_bits=8, base_density=0.5))
    assert (sparse.bits, sparse.read_bits, bias.bits) == (1000 + 500 * 8, 3000 + 1500 * 8, 80)


def test_two_tables_a_task_and_none_that_is_empty():
    tasks = [TaskSize("a", 100, 20), TaskSize("b", 50, 0)]
    made = stored_tensors([], ActivationTraffic(64, 200, 300), tasks, ChipUse())
    assert [tensor.name for tensor in made] == ["activations", "a: entries", "a: parameters", "b: entries"]
    activations, entries, parameters, other = made
    assert (activations.bits, activations.read_bits, activations.written_bits) == (512, 2400, 1600)
    assert (entries.bits, parameters.bits, other.bits) == (3200, 320, 1600)
    assert {tensor.share for tensor in made[1:]} == {0.5}
    assert [tensor.task for tensor in made] == [None, "a", "a", "b"]
