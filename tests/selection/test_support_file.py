"""A support file is bound to its base: the same values in any storage pass, other values are refused by name."""

from __future__ import annotations

import pytest
import tiny
import torch

from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.errors import InputError
from taskedge.selection.select import select
from taskedge.selection.support import SUPPORT, load_support, save_support
from taskedge.selection.support_file import found_on, read_support_file, write_support_file


@pytest.fixture
def stored(bert, tmp_path):
    """Return a support of 1 % found on ``bert``, and its file."""
    support = select(bert, [tiny.batch(bert)], budget="1%")
    path = tmp_path / "support.safetensors"
    write_support_file(support, path, bert, {"task": "text-classification", "labels": ["a", "b"]})
    return support, path


def same(one, other):
    return one.linears.keys() == other.linears.keys() and all(
        torch.equal(linear.flat, other.linears[name].flat)
        and torch.equal(linear.input_rms, other.linears[name].input_rms)
        and linear.shared_input == other.linears[name].shared_input
        for name, linear in one.linears.items()
    )


def test_the_file_holds_the_support_and_says_where_it_was_found(bert, stored):
    support, path = stored
    assert same(read_support_file(path, bert), support)
    assert str(read_support_file(path, bert)) == str(support)
    assert (found_on(path)["task"], found_on(path)["labels"]) == ("text-classification", ["a", "b"])


def test_equal_supports_give_equal_files(bert, stored, tmp_path):
    support, path = stored
    write_support_file(support, tmp_path / "again", bert, {"task": "text-classification", "labels": ["a", "b"]})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4"])
def test_the_same_base_in_another_storage_passes(stored, storage):
    support, path = stored
    device = tiny.bert()
    device = device.to(torch.bfloat16) if storage == "bfloat16" else set_weight_storage(device, storage)
    assert same(read_support_file(path, device), support)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
def test_one_other_value_is_refused_by_name(stored, storage):
    support, path = stored
    device = tiny.bert()
    name, linear = list(support.linears.items())[3]
    weight = device.get_submodule(name).weight
    with torch.no_grad():
        weight[linear.rows[0], linear.columns[0]] += weight.abs().max()
    if storage == "bfloat16":
        device.to(torch.bfloat16)
    elif storage in ("int8", "int4"):
        set_weight_storage(device, storage)
    with pytest.raises(InputError, match=rf"1 of {len(support.linears)} linears hold other values .* '{name}' first"):
        read_support_file(path, device)


def test_another_dtype_shape_or_name_is_refused(bert, stored):
    _, path = stored
    with pytest.raises(InputError, match=r"stored as float16, .* compared with float32, bfloat16, int8, int4 only"):
        read_support_file(path, tiny.bert().half())
    with pytest.raises(InputError, match=r"the model has no linear 'bert\.encoder"):
        read_support_file(path, tiny.mlp())
    other = tiny.bert()
    name = next(iter(load_support(path).linears))
    layer = torch.nn.Linear(8, 8)
    other.set_submodule(name, layer)
    with pytest.raises(InputError, match=r"is \[8, 8\], the support was found on \[16, 16\]|is \[8, 8\], the support"):
        read_support_file(path, other)


def test_low_rank_products_are_bound_by_the_whole_weight(bert, tmp_path):
    batches = [tiny.batch(bert)]
    support = select(bert, batches, budget="8%", rule="spt", rank=1)
    assert support.low_rank
    write_support_file(support, tmp_path / "s", bert)
    read = read_support_file(tmp_path / "s", bert)
    assert (read.low_rank, read.full_parameters) == (support.low_rank, support.full_parameters)
    name = next(iter(support.low_rank))
    with torch.no_grad():
        bert.get_submodule(name).weight[0, 0] += 1
    with pytest.raises(InputError, match=f"'{name}' first"):
        read_support_file(tmp_path / "s", bert)


def test_a_support_without_a_base_and_a_damaged_file_name_the_verb(bert, stored, tmp_path):
    support, path = stored
    save_support(support, tmp_path / "plain")
    with pytest.raises(InputError, match="does not state its base: write the file with `taskedge select`"):
        read_support_file(tmp_path / "plain", bert)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"damaged .*: write it again with `taskedge select`"):
        read_support_file(path, bert)


def test_the_file_is_a_support_for_every_reader(stored):
    support, path = stored
    assert same(load_support(path), support)
    assert SUPPORT.read(path).header["format"] == "taskedge-support/3"
