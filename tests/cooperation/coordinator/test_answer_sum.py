"""A sum of answers equals the sum name by name, and the sum of regional sums equals the flat one."""

import random

import torch

from taskedge.cooperation.coordinator.aggregation import weighted_mean
from taskedge.cooperation.coordinator.answer_sum import AnswerSum
from taskedge.cooperation.protocol.quantization import QuantizedAnswer, dequantize, quantize

SHAPES = {"a": (3, 2), "b": (4,), "c": (1,), "d": (0,)}


def answers(count, seed, names=("a", "b", "c", "d"), scale=1e-3):
    """Float8 gradients, weights, and which names each holds."""
    draw, pick = torch.Generator().manual_seed(seed), random.Random(seed)
    made = []
    for _ in range(count):
        held = [name for name in names if pick.random() < 0.8] or list(names[:1])
        pick.shuffle(held)
        gradient = {name: scale * torch.randn(SHAPES[name], generator=draw) for name in held}
        sent = quantize("gradients", "float8", gradient, {})
        made.append((float(pick.randrange(1, 3000)), QuantizedAnswer("gradients", sent, {})))
    return made


def name_by_name(weighted):
    """The sum as it is defined, one name after the other, in the order of the answers."""
    total, weights = {}, {}
    for weight, tensors in weighted:
        for name, tensor in tensors.items():
            term = weight * tensor.double()
            total[name] = total[name] + term if name in total else term
            weights[name] = weights.get(name, 0.0) + weight
    return {name: tensor / weights[name] for name, tensor in total.items()}


def regional(weighted, num_regions):
    sums = [AnswerSum() for _ in range(num_regions)]
    for number, (weight, tensors) in enumerate(weighted):
        sums[number % num_regions].add(weight, tensors)
    total = AnswerSum()
    for one in sums:
        total.merge(one)
    return total.mean()


def test_answers_of_different_names_are_summed_to_the_bit_in_their_order():
    for seed in range(20):
        given_answers = answers(7, seed)
        expected, found = name_by_name(given_answers), weighted_mean(iter(given_answers))
        plain = weighted_mean([(weight, dict(tensors)) for weight, tensors in given_answers])
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
            assert torch.equal(plain[name], tensor), name


def test_an_answer_kept_as_sent_is_dequantized_as_before():
    for kind, upload in (("gradients", "float8"), ("gradients", "float32"), ("changes", "bfloat16")):
        draw = torch.Generator().manual_seed(0)
        base = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
        trained = {name: value + 0.01 * torch.randn(value.shape, generator=draw) for name, value in base.items()}
        sent = quantize(kind, upload, trained, base)
        kept, whole = QuantizedAnswer(kind, sent, base), dequantize(kind, sent, base)
        assert len(kept) == len(whole) == len(SHAPES)
        for name, tensor in whole.items():
            assert torch.equal(kept[name], tensor), (kind, upload, name)
            assert tensor.dtype == torch.float32
            assert tensor.shape == SHAPES[name]
