"""A sum of answers equals the sum name by name, and the sum of regional sums equals the flat one."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as some

from taskedge.cooperation.coordinator.aggregation import SERVER_OPTIMIZERS, weighted_mean
from taskedge.cooperation.coordinator.answer_sum import AnswerSum
from taskedge.cooperation.protocol.payloads import sum_statistics
from taskedge.cooperation.protocol.quantization import QuantizedAnswer, dequantize, quantize
from taskedge.selection.statistics import LinearStatistics

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


def test_regional_sums_equal_the_flat_sum_up_to_float64s_rounding():
    """Where gradients differ in size by more than float64 can hold in one number, the grouping of the sum shows."""
    weighted = [answer for seed, scale in enumerate((1.0, 1e-7, 1e-14)) for answer in answers(100, seed, scale=scale)]
    flat, by_region = weighted_mean(weighted), regional(weighted, 7)
    size = weighted_mean([(weight, {n: t.abs() for n, t in tensors.items()}) for weight, tensors in weighted])
    differs = False
    for name, tensor in flat.items():
        assert bool(((by_region[name] - tensor).abs() <= 2 * 300 * 2.0**-53 * size[name]).all())
        differs = differs or not torch.equal(by_region[name], tensor)
    assert differs  # so bit-for-bit equality is not claimed
    values = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    steps = [SERVER_OPTIMIZERS["fedadamw"]().step(values, mean, lambda _: 1e-3) for mean in (flat, by_region)]
    assert all(torch.equal(steps[0][name], steps[1][name]) for name in values)  # the values are float32


@given(
    some.lists(
        some.tuples(some.integers(1, 2**11), some.lists(some.integers(-448, 448), min_size=4, max_size=4)), min_size=1
    ),
    some.integers(1, 5),
)
def test_regional_sums_are_the_flat_sum_to_the_bit_if_all_terms_fit_53_bits(rows, num_regions):
    weighted = [(float(weight), {"b": torch.tensor(entries).float()}) for weight, entries in rows]
    assert torch.equal(regional(weighted, num_regions)["b"], weighted_mean(weighted)["b"])


def test_regional_sums_of_statistics_are_the_flat_sum_to_the_bit():
    """Squares of float32 numbers that span few powers of two: float64 holds their sum."""
    draw = torch.Generator().manual_seed(0)

    def part():
        squares = (1 + torch.rand(6, generator=draw)).double().square()
        squares = (squares * 2**24).round() / 2**24
        return {"x": LinearStatistics(shared_input="x", tokens=32, input_squares=squares)}

    parts = [part() for _ in range(60)]
    flat = sum_statistics(parts)["x"]
    by_region = sum_statistics([sum_statistics(parts[start::7]) for start in range(7)])["x"]
    assert by_region.tokens == flat.tokens
    assert torch.equal(by_region.input_squares, flat.input_squares)
