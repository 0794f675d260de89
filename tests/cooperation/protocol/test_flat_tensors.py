"""Operations on one flat tensor give what the same operations give tensor by tensor."""

import torch

from taskedge.cooperation.protocol.flat_tensors import are_finite, flatten, layout_of

SHAPES = {"a": (3, 2), "empty": (0,), "b": (), "c": (5,)}


def drawn(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in SHAPES.items()}


def test_a_layout_splits_what_was_flattened():
    tensors = drawn()
    layout = layout_of(tensors)
    found = layout.split(flatten(tensors.values()))
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    for name, (index, start, end) in layout.places.items():
        assert layout.names[index] == name
        assert torch.equal(flatten(tensors.values())[start:end], tensors[name].reshape(-1))


def test_equal_layouts_are_one_object():
    assert layout_of(drawn(0)) is layout_of(drawn(1))
    assert layout_of(drawn(), ["c", "a"]).names == ("c", "a")


def test_sums_are_those_of_each_tensor():
    tensors = drawn()
    found = layout_of(tensors).sums(flatten(tensors.values()))
    assert found[1] == 0.0
    torch.testing.assert_close(torch.tensor(found), torch.stack([t.sum() for t in tensors.values()]).float())
    assert layout_of({}).sums(flatten([])) == []


def test_one_number_that_is_not_finite_is_found_in_any_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        sound = [torch.ones(4).to(dtype), torch.zeros(0).to(dtype), torch.ones(2)]
        assert are_finite(sound)
        broken = torch.tensor([1.0, float("nan")]).to(dtype)
        assert not are_finite([*sound, broken])
    assert are_finite([])
