"""Codings have the size of their formula, the stated error, and no way for a number that is not finite."""

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.cut.cut_coding import CODINGS, coded_bytes, decode, encode
from taskedge.errors import InputError, UnknownName

every_coding = pytest.mark.parametrize("coding", CODINGS)
floats = st.floats(-(2.0**100), 2.0**100, width=32)


@st.composite
def matrices(draw):
    """Draw [tokens, k] with numbers of very different sizes in a token."""
    tokens, width = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    numbers = draw(st.lists(floats, min_size=tokens * width, max_size=tokens * width))
    return torch.tensor(numbers, dtype=torch.float32).view(tokens, width)


@every_coding
@given(matrix=matrices())
def test_bytes_are_those_of_the_formula_and_shapes_come_back(coding, matrix):
    per_number = {"fp32": 4, "bf16": 2, "float8": 1, "int8": 1}[coding]
    expected = matrix.numel() * per_number + 4 * len(matrix) * (per_number == 1)
    coded = encode(matrix, coding)
    assert len(coded) == coded_bytes(tuple(matrix.shape), coding) == expected
    assert decode(coded, tuple(matrix.shape), coding).shape == matrix.shape


@given(matrix=matrices())
def test_fp32_is_exact(matrix):
    again = decode(encode(matrix, "fp32"), tuple(matrix.shape), "fp32")
    assert torch.equal(again.view(torch.int32), matrix.view(torch.int32))


@every_coding
@given(matrix=matrices())
def test_errors_are_within_the_stated_bounds(coding, matrix):
    found = decode(encode(matrix, coding), tuple(matrix.shape), coding).double()
    exact = matrix.double()
    largest = exact.abs().amax(1, keepdim=True) if matrix.numel() else exact
    tiny = 2.0**-120  # below it float32 itself and the smallest scale decide
    bound = {
        "fp32": torch.zeros_like(exact),
        "bf16": 2.0**-8 * exact.abs() + 2.0**-134,
        "float8": torch.maximum(2.0**-4 * exact.abs(), largest / 448 * 2.0**-10) * (1 + 1e-6) + tiny,
        "int8": (largest / 254 * (1 + 1e-5) + tiny).expand_as(exact),
    }[coding]
    assert bool(((found - exact).abs() <= bound).all())


@every_coding
@given(matrix=matrices(), scale=st.integers(1, 3))
def test_tokens_are_coded_apart(coding, matrix, scale):
    """A token's code does not depend on what else is in the batch."""
    if not len(matrix):
        return
    more = torch.cat([matrix, matrix[:1] * 10.0**scale])
    one = decode(encode(more, coding), tuple(more.shape), coding)[: len(matrix)]
    assert torch.equal(one, decode(encode(matrix, coding), tuple(matrix.shape), coding))


def test_known_bytes():
    matrix = torch.tensor([[1.0, -2.0]])
    assert encode(matrix, "fp32") == struct.pack("<ff", 1.0, -2.0)
    assert encode(matrix, "bf16") == struct.pack("<ff", 1.0, -2.0)[2:4] + struct.pack("<f", -2.0)[2:]
    assert encode(matrix, "int8") == struct.pack("<f", 2.0 / 127) + bytes([64, 129])  # 63.5 rounds to even; -127
    assert encode(matrix, "float8") == struct.pack("<f", 2.0 / 448) + bytes([0x76, 0xFE])  # 224 and -448


@every_coding
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_do_not_leave(coding, bad):
    with pytest.raises(InputError, match="1 of the 4 numbers to send are not finite, that of token 1, place 0 first"):
        encode(torch.tensor([[1.0, 2.0], [bad, 0.0]]), coding)


def test_a_number_too_large_for_a_coding_is_refused_and_not_sent_as_infinity():
    largest = torch.tensor([[torch.finfo(torch.float32).max]])
    assert torch.equal(decode(encode(largest, "fp32"), (1, 1), "fp32"), largest)
    for coding in ("bf16", "int8"):
        with pytest.raises(InputError, match=f"in {coding} are not finite"):
            encode(largest, coding)


@pytest.mark.parametrize(
    ("coding", "content"),
    [
        ("fp32", struct.pack("<f", math.nan)),
        ("bf16", struct.pack("<f", math.inf)[2:]),
        ("float8", struct.pack("<f", 1.0) + b"\x7f"),
        ("float8", struct.pack("<f", math.inf) + b"\x01"),
        ("float8", struct.pack("<f", 3e38) + b"\x7e"),
        ("int8", struct.pack("<f", math.nan) + b"\x01"),
    ],
)
def test_numbers_that_are_not_finite_do_not_come_in(coding, content):
    with pytest.raises(InputError, match="1 of the 1 numbers that came are not finite"):
        decode(content, (1, 1), coding)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_above_zero_is_refused(scale):
    with pytest.raises(InputError, match=r"every scale of int8 is above 0"):
        decode(struct.pack("<f", scale) + b"\x01", (1, 1), "int8")


@every_coding
@pytest.mark.parametrize("change", [-1, 1])
def test_other_sizes_are_refused_before_use(coding, change):
    size = coded_bytes((2, 3), coding)
    with pytest.raises(
        InputError, match=rf"{size + change} bytes where {size} were expected, for \[2, 3\] in {coding}"
    ):
        decode(bytes(size + change), (2, 3), coding)


def test_what_is_no_matrix_and_what_is_no_coding_is_refused():
    for tensor in (torch.zeros(3), torch.zeros(1, 2, 3), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(InputError, match="no matrix of tokens"):
            encode(tensor, "fp32")
    for call in (lambda: encode(torch.zeros(1, 1), "int9"), lambda: decode(b"", (0, 0), "int9")):
        with pytest.raises(UnknownName, match="did you mean 'int8'"):
            call()
