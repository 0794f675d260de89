"""Delta files survive a round trip, are small, and are refused after any of thousands of mutations."""

import contextlib
import json
import random
import stat
import struct
from pathlib import Path

import pytest
import tiny
import torch
from delta_files import Refusals, assert_same, header, linear, put, signed, without
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as serialize

import taskedge as te
from taskedge.delta.delta import Delta, Provenance
from taskedge.delta.file import section_bytes
from taskedge.errors import DeltaError, InputError, TaskEdgeError

SOURCE = Path(te.__file__).parent


def even(out, inputs, per_row=1):
    return linear((out, inputs), [row * inputs + column for row in range(out) for column in range(per_row)])


def staggered(out, inputs, per_row=1):
    """Return entries in other columns in each row."""
    return linear((out, inputs), [row * inputs + (row + k) % inputs for row in range(out) for k in range(per_row)])


def in_columns(out, inputs, columns, seed=0):
    """Return entries in these columns of every row."""
    return linear((out, inputs), [row * inputs + column for row in range(out) for column in columns], seed)


@st.composite
def deltas(draw):
    """Draw deltas with any number of linears, evenly or unevenly filled or empty, with a head and any labels."""
    linears = {}
    for name in draw(st.lists(st.text(max_size=8), unique=True, max_size=4)):
        shape = draw(st.tuples(st.integers(1, 6), st.sampled_from([1, 3, 256, 257, 70_000])))
        flat = draw(st.sets(st.integers(0, shape[0] * shape[1] - 1), max_size=12))
        if draw(st.booleans()):
            columns = draw(st.sets(st.integers(0, shape[1] - 1), min_size=1, max_size=4))
            flat = {row * shape[1] + column for row in range(shape[0]) for column in columns}
        linears[name] = linear(shape, flat, draw(st.integers(0, 99)))
    whole = {}
    for name in draw(st.lists(st.text(max_size=8), unique=True, max_size=3)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        whole[name] = torch.randn(shape).to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])))
    provenance = Provenance(
        rule=draw(st.text(max_size=5)),
        base=draw(st.text(max_size=5)),
        base_parameters=draw(st.integers(0, 2**62)),
        labels=tuple(draw(st.lists(st.text(max_size=6), max_size=3))),
        training=draw(st.dictionaries(st.text(max_size=4), st.none() | st.integers(-9, 9) | st.booleans() | st.text())),
    )
    return Delta(linears, whole, provenance)


@pytest.mark.slow
@given(delta=deltas(), values=st.sampled_from(["fp32", "bf16"]), head=st.booleans())
def test_it_goes_round(tmp_path, delta, values, head):
    path = te.save(delta, tmp_path / "x.safetensors", values=values, head=head)
    assert_same(delta, te.load(path), {"fp32": torch.float32, "bf16": torch.bfloat16}[values], head)
    assert te.load(str(path)).num_entries == delta.num_entries


def test_values_are_absolute_and_the_sign_of_zero_is_kept(tmp_path):
    one = linear((2, 2), [0, 3])
    one.values.copy_(torch.tensor([-0.0, 2.0]))
    assert tiny.bits(te.load(te.save(Delta({"a": one}), tmp_path / "x")).linears["a"].values).equal(
        tiny.bits(one.values)
    )


@pytest.mark.parametrize(
    ("inputs", "dtype"),
    [(2, "U8"), (256, "U8"), (257, "U16"), (2**16, "U16"), (2**16 + 1, "U32")],
)
def test_columns_take_the_narrowest_type_that_fits(tmp_path, inputs, dtype):
    path = te.save(Delta({"a": linear((2, inputs), [inputs - 1, inputs])}), tmp_path / "x")
    assert header(path.read_bytes())["columns"]["dtype"] == dtype
    assert te.load(path).linears["a"].columns.tolist() == [inputs - 1, 0]


def test_counts_are_there_only_where_rows_differ(tmp_path):
    regular = te.save(Delta({"a": staggered(3, 5, 2), "b": staggered(4, 7, 2)}), tmp_path / "x")
    uneven = te.save(Delta({"a": staggered(3, 5, 2), "b": staggered(4, 7, 1)}), tmp_path / "y")
    assert "counts" not in section_bytes(regular)
    assert section_bytes(uneven)["counts"] == 7
    assert sum(section_bytes(uneven).values()) == uneven.stat().st_size


@pytest.mark.parametrize(("values", "limit"), [("bf16", 4.3), ("fp32", 6.3)])
def test_bytes_per_entry_of_a_real_shape(tmp_path, values, limit):
    layers = {}
    for block in range(6):  # of MiniLM-L6: 20,736 neurons
        prefix = f"bert.encoder.layer.{block}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            layers[prefix + part] = even(384, 384)
        layers[prefix + "intermediate.dense"] = even(1536, 384)
        layers[prefix + "output.dense"] = even(384, 1536)
    delta = Delta(layers, {"classifier.weight": torch.zeros(2, 384)})
    path = te.save(delta, tmp_path / "x", values=values, head=False)
    assert delta.num_entries == 20_736
    assert path.stat().st_size / delta.num_entries <= limit


# -- lists of columns ------------------------------------------------------------------------------------------------


def manifest(path):
    return json.loads(header(path.read_bytes())["__metadata__"]["taskedge"])


@given(data=st.data())
def test_linears_in_few_columns_go_round_beside_others(tmp_path, data):
    lists = data.draw(st.lists(st.sets(st.integers(0, 299), min_size=1, max_size=5), min_size=1, max_size=3))
    linears = {}
    for index in range(data.draw(st.integers(1, 6))):
        out = data.draw(st.integers(1, 5))
        columns = data.draw(st.sampled_from(lists))
        listed = data.draw(st.booleans())
        linears[str(index)] = in_columns(out, 300, columns, index) if listed else staggered(out, 300, len(columns))
    delta = Delta(linears)
    path = te.save(delta, tmp_path / "x")
    assert_same(delta, te.load(path))
    sizes = section_bytes(path)
    with_list = [one for one in linears.values() if one.shape[0] > 1 and is_listed(one)]
    distinct = {tuple(one.columns[: len(one) // one.shape[0]].tolist()) for one in with_list}
    assert sizes.get("column_lists", 0) == 2 * sum(map(len, distinct))  # each list is stored once
    assert sizes["columns"] == 2 * (delta.num_entries - sum(map(len, with_list)))
    assert manifest(path)["format"] == ("taskedge-delta/2" if with_list else "taskedge-delta/1")


def is_listed(one):
    per_row = len(one) // one.shape[0]
    return all(one.columns[one.rows == row].tolist() == one.columns[:per_row].tolist() for row in range(one.shape[0]))


def test_eight_columns_of_a_real_shape_take_two_bytes_an_entry(tmp_path):
    columns = [3, 17, 40, 99, 200, 201, 333, 383]
    layers = {f"block.{block}.{part}": in_columns(384, 384, columns) for block in range(6) for part in "qkvo"}
    delta = Delta(layers)
    path = te.save(delta, tmp_path / "x", values="bf16")
    sizes = section_bytes(path)
    assert (sizes["column_lists"], sizes["columns"], sizes["values"]) == (16, 0, 2 * delta.num_entries)
    assert path.stat().st_size / delta.num_entries < 2.1


def test_a_file_without_lists_is_of_the_format_that_older_versions_read(tmp_path):
    path = te.save(Delta({"a": staggered(3, 5), "one neuron": in_columns(1, 5, [2, 4])}), tmp_path / "x")
    assert manifest(path)["format"] == "taskedge-delta/1"
    assert manifest(path).keys() == {"format", "form", "linears", "provenance"}


LISTS = {
    "no lists": without("column_lists"),
    "no linears of lists": without("list_of"),
    "a list that is not there": lambda manifest: manifest | {"list_of": [0, 1, -1]},
    "a list of no linear": lambda manifest: manifest | {"list_of": [-1, -1, -1]},
    "too few linears": lambda manifest: manifest | {"list_of": [0, 0]},
    "another length": lambda manifest: manifest | {"column_lists": [3]},
    "an empty list": lambda manifest: manifest | {"column_lists": [0]},
    "a huge list": lambda manifest: manifest | {"column_lists": [2**31 - 1]},
    "format 1": lambda manifest: manifest | {"format": "taskedge-delta/1"},
    "format 3": lambda manifest: manifest | {"format": "taskedge-delta/3"},
    "a linear of more rows": lambda manifest: (
        manifest
        | {"linears": [[*manifest["linears"][0][:1], 2**30, *manifest["linears"][0][2:]], *manifest["linears"][1:]]}
    ),
    "a linear of fewer entries": lambda manifest: (
        manifest
        | {"linears": [[*manifest["linears"][0][:3], 4, *manifest["linears"][0][4:]], *manifest["linears"][1:]]}
    ),
}


@pytest.mark.parametrize("what", [*LISTS, "a column outside", "unsorted columns", "a column twice", "no tensor"])
def test_lists_that_contradict_their_linears_are_refused(tmp_path, what):
    path = te.save(
        Delta({"a": in_columns(3, 9, [1, 4]), "b": in_columns(4, 9, [1, 4]), "c": staggered(3, 5)}), tmp_path / "x"
    )
    changes = {
        "a column outside": put("column_lists", at(1, 9)),
        "unsorted columns": put("column_lists", lambda columns: columns.flip(0)),
        "a column twice": put("column_lists", torch.zeros_like),
        "no tensor": lambda tensors: {name: t for name, t in tensors.items() if name != "column_lists"},
    }
    path.write_bytes(signed(path.read_bytes(), LISTS.get(what), changes.get(what)))
    with pytest.raises(DeltaError, match=str(path)):
        te.load(path)


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = te.save(Delta({"a": even(2, 2)}), tmp_path / "x")
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        te.save(Delta({"a": even(3, 3)}), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        te.save(Delta({"a": even(3, 3)}), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_and_unknown_values(tmp_path):
    with pytest.raises(InputError, match="name a folder that exists"):
        te.save(Delta({"a": even(2, 2)}), tmp_path / "none" / "x")
    with pytest.raises(InputError, match="values 'fp8' are unknown"):
        te.save(Delta({"a": even(2, 2)}), tmp_path / "x", values="fp8")


def test_settings_that_are_no_json_are_refused_before_anything_is_written(tmp_path):
    delta = Delta({"a": even(2, 2)}).with_provenance(training={"path": tmp_path})
    with pytest.raises(InputError, match="training settings"):
        te.save(delta, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_can_be_read_by_others_as_the_umask_says(tmp_path):
    path = te.save(Delta({"a": even(2, 2)}), tmp_path / "x")
    plain = tmp_path / "y"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


# -- bad files -------------------------------------------------------------------------------------------------------


def with_header(content, new):
    """Return the file with another header, given as bytes or as an object for JSON."""
    old = 8 + struct.unpack("<Q", content[:8])[0]
    text = new if isinstance(new, bytes) else json.dumps(new).encode()
    return struct.pack("<Q", len(text)) + text + content[old:]


@pytest.fixture
def refusals(tmp_path, good):
    return Refusals(tmp_path, good)


@pytest.mark.slow
def test_every_truncation_is_refused(good, refusals):
    content = good.read_bytes()
    for length in range(len(content)):
        assert refusals.try_(content[:length]) is not None
    for more in (b"\0", b"x" * 100, content):
        assert refusals.try_(content + more) is not None
    assert refusals.refused > 1000


@pytest.mark.slow
def test_every_flipped_byte_is_refused(good, refusals):
    content = good.read_bytes()
    draw = random.Random(0)
    tries = 0
    for place in range(len(content)):
        for flip in {1 << draw.randrange(8), draw.randrange(1, 256)}:
            refusals.try_(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
            tries += 1
    assert tries > 2000
    assert refusals.refused > 0.98 * tries  # some change only white space or an unused capital of the header
    refusals.check_model()


@pytest.mark.slow
def test_random_damage_is_refused(good, refusals):
    content = good.read_bytes()
    draw = random.Random(1)
    for _ in range(1000):
        mutated = bytearray(content)
        for _ in range(draw.randrange(1, 20)):
            place, length = draw.randrange(len(mutated)), draw.randrange(1, 40)
            action = draw.randrange(4)
            if action == 0:
                mutated[place : place + length] = draw.randbytes(length)
            elif action == 1:
                del mutated[place : place + length]
            elif action == 2:
                mutated[place:place] = draw.randbytes(length)
            else:
                mutated[place : place + length] = mutated[-length:]
        refusals.try_(bytes(mutated))
    for _ in range(200):
        refusals.try_(draw.randbytes(draw.randrange(300)))
    assert refusals.refused == 1200


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1])
def test_an_absurd_header_length_is_refused(good, refusals, length):
    assert refusals.try_(struct.pack("<Q", length) + good.read_bytes()[8:])


def test_odd_headers_are_refused(good, refusals):
    content = good.read_bytes()
    usual = header(content)
    metadata = usual["__metadata__"]
    odd = [
        b"",
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b"{}",
        b"{" * 5000,
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"\xff\xfe{}",
        b"{" + b" " * 200,
        *[usual | {"__metadata__": wrong} for wrong in (None, 3, [], "x", {}, {"taskedge": 3}, {"taskedge": {}})],
        usual | {"__metadata__": {"taskedge": metadata["taskedge"]}},
        usual | {"__metadata__": {"digest": metadata["digest"]}},
        usual | {"__metadata__": metadata | {"digest": ""}},
        usual | {"__metadata__": metadata | {"taskedge": ""}},
        usual | {"__metadata__": metadata | {"taskedge": "\ud800"}},
        json.dumps(usual).replace('"digest": "', '"digest": "\\ud800').encode(),
        {name: tensor for name, tensor in usual.items() if name != "columns"},
        usual | {"extra": usual["columns"]},
        usual | {"columns": usual["columns"] | {"dtype": "I64"}},
        usual | {"columns": usual["columns"] | {"dtype": "NONE"}},
        usual | {"columns": usual["columns"] | {"shape": [2**62, 4]}},
        usual | {"columns": usual["columns"] | {"shape": [-1]}},
        usual | {"columns": usual["columns"] | {"shape": []}},
        usual | {"columns": usual["columns"] | {"data_offsets": [0, 2**63]}},
        usual | {"columns": usual["columns"] | {"data_offsets": [9, 3]}},
        usual | {"columns": usual["values"]},
    ]
    for new in odd:
        assert refusals.try_(with_header(content, new)) is not None, new


def test_duplicate_keys_in_a_header_mean_nothing_else(good, refusals):
    """Readers may disagree on which of two equal keys counts; either way the content must match its digest."""
    content = good.read_bytes()
    text = json.dumps(header(content))
    metadata = json.dumps(header(content)["__metadata__"])
    for other in ('{"taskedge":"{}","digest":"x"}', "{}"):
        refusals.try_(with_header(content, f'{{"__metadata__":{other},{text[1:]}'.encode()))
        refusals.try_(with_header(content, f'{text[:-1]},"__metadata__":{other}}}'.encode()))
        refusals.try_(with_header(content, f'{text[:-1]},"__metadata__":{metadata}}}'.encode()))


def at(place, value):
    def change(tensor):
        wide = tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64)
        wide[place] = value
        return wide.to(tensor.dtype)

    return change


def entry(**changes):
    """Return a function that changes fields of the first linear's row in the manifest."""
    places = ("name", "out", "inputs", "entries", "dtype", "digest")

    def change(manifest):
        for name, value in changes.items():
            manifest["linears"][0][places.index(name)] = value

    return change


TENSORS = {
    "a NaN value": put("values", at(3, torch.nan)),
    "an infinite value": put("values", at(0, -torch.inf)),
    "a column outside": put("columns", at(0, 200)),
    "unsorted columns": put("columns", lambda columns: columns.flip(0)),
    "a column twice": put("columns", lambda columns: torch.zeros_like(columns)),
    "no columns": lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "columns"},
    "no values": lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "values"},
    "no counts": lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "counts"},
    "nothing": lambda tensors: {"other": torch.zeros(1)},
    "a tensor that is not of the format": lambda tensors: tensors | {"cuonts": torch.zeros(1)},
    "a value too few": put("values", lambda values: values[1:].clone()),
    "a value too many": put("values", lambda values: torch.cat([values, values[:1]])),
    "values in two dimensions": put("values", lambda values: values[None]),
    "a lone value": put("values", lambda values: values[0].clone()),
    "columns in two dimensions": put("columns", lambda columns: columns[None]),
    "counts too short": put("counts", lambda counts: counts[1:].clone()),
    "counts that move an entry": put("counts", lambda counts: counts.roll(7)),
    "huge counts": put("counts", lambda counts: torch.full_like(counts, 255)),
    "counts of another sum": put("counts", at(0, 9)),
    "negative counts": put("counts", lambda counts: -counts.to(torch.int8)),
    "a NaN in the head": put("whole/head.weight", at((0, 0), torch.nan)),
    "a head of whole numbers": put("whole/head.weight", lambda head: head.to(torch.int64)),
    "a complex head": put("whole/head.weight", lambda head: head.to(torch.complex64)),
    "a head of truths": put("whole/head.weight", lambda head: head > 0),
    "an 8 bit head": put("whole/head.weight", lambda head: head.to(torch.float8_e5m2)),
    **{
        f"{name} as {dtype}": put(name, lambda tensor, dtype=dtype: tensor.to(dtype))
        for name in ("columns", "counts")
        for dtype in (torch.int8, torch.int64, torch.float32, torch.bool, torch.bfloat16)
    },
    **{
        f"values as {dtype}": put("values", lambda tensor, dtype=dtype: tensor.to(dtype))
        for dtype in (torch.float64, torch.float16, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)
    },
}


@pytest.mark.parametrize("what", list(TENSORS))
def test_bad_tensors_under_a_right_digest_are_refused(good, refusals, what):
    assert refusals.try_(signed(good.read_bytes(), change_tensors=TENSORS[what])) is not None
    refusals.check_model()


MANIFESTS = {
    "an empty text": lambda _: "",
    "no JSON": lambda _: "{",
    "null": lambda _: "null",
    "a list": lambda _: "[]",
    "deep": lambda _: "[" * 100_000,
    "deep training": lambda m: m["provenance"].update(training=json.loads("[" * 300 + "]" * 300)),
    "another format": lambda m: m.update(format="taskedge-delta/2"),
    "another form": lambda m: m.update(form="dense"),
    "an unknown key": lambda m: m.update(extra=1),
    "an unknown provenance": lambda m: m["provenance"].update(extra=1),
    "no linears": without("linears"),
    "no provenance": without("provenance"),
    "no rule": without("provenance", "rule"),
    "linears gone": lambda m: m.update(linears=[]),
    "a linear gone": without("linears", 0),
    "linears as text": lambda m: m.update(linears="first"),
    "linears by name": lambda m: m.update(linears={"first": 1}),
    "a short row": without("linears", 0, 5),
    "a linear twice": lambda m: m.update(linears=[m["linears"][0]] * 2),
    "labels as a number": lambda m: m["provenance"].update(labels=3),
    "labels of numbers": lambda m: m["provenance"].update(labels=[1, 2]),
    "training as a list": lambda m: m["provenance"].update(training=[]),
    "a fraction of parameters": lambda m: m["provenance"].update(base_parameters=1.5),
    "no name": entry(name=None),
    "rows as text": entry(out="10"),
    "a fraction of rows": entry(out=10.5),
    "no rows": entry(out=0),
    "negative rows": entry(out=-10),
    "too few rows": entry(out=9),
    "too many rows": entry(out=11),
    "huge rows": entry(out=2**40),
    "rows beyond 64 bits": entry(out=2**70),
    "huge rows without entries": entry(out=2**40, entries=0),
    "too narrow": entry(inputs=1),
    "huge width": entry(inputs=2**62),
    "width beyond 64 bits": entry(inputs=2**70),
    "negative entries": entry(entries=-1),
    "too many entries": entry(entries=10**6),
    "entries beyond 64 bits": entry(entries=2**70),
    "entries as truth": entry(entries=True),
    "an endless number": lambda m: (
        json.dumps(m).replace('"entries"', '"x"').replace(" 10,", " 1" + "0" * 5000 + ",", 1)
    ),
    "a number for a digest": entry(digest=5),
}


@pytest.mark.parametrize("what", list(MANIFESTS))
def test_a_bad_manifest_under_a_right_digest_is_refused(good, refusals, what):
    assert refusals.try_(signed(good.read_bytes(), change_manifest=MANIFESTS[what])) is not None
    refusals.check_model()


@pytest.mark.parametrize("out", [2**31, 2**40, 2**62, 2**70])
def test_huge_rows_that_hold_nothing_cost_nothing(tmp_path, out):
    """Without counts only the manifest states the number of rows, so the number must not be trusted."""
    content = te.save(Delta({"a": linear((1, 1), [])}), tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(signed(content, entry(out=out)))
    with contextlib.suppress(DeltaError):
        assert te.load(tmp_path / "x").num_entries == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry(name="frst"), "has no linear 'frst'; did you mean 'first'"),
        (entry(inputs=13), r"linear 'first' is \[10, 12\], the delta was made for \[10, 13\]"),
        (entry(dtype="bfloat16"), "is float32, the delta was trained on bfloat16"),
        (entry(dtype="rubbish"), "was trained on rubbish"),
        (entry(digest="00" * 12), "hold other values"),
        (entry(digest=""), "hold other values"),
    ],
)
def test_a_file_that_is_sound_but_for_another_base_leaves_the_model_alone(good, tmp_path, mlp, change, message):
    path = tmp_path / "x"
    path.write_bytes(signed(good.read_bytes(), change))
    before = tiny.state(mlp)
    with pytest.raises(DeltaError, match=message):
        te.apply(mlp, te.load(path))
    assert tiny.same_bits(mlp.state_dict(), before)


@pytest.mark.parametrize("training", [{"lr": float("nan")}, {"loss": float("inf")}, {"deep": [{"a": [1, None]}]}])
def test_settings_with_odd_numbers_go_round(tmp_path, training):
    path = te.save(Delta({"a": even(2, 2)}).with_provenance(training=training), tmp_path / "x")
    assert repr(te.load(path).provenance.training) == repr(training)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        te.load(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read"):
        te.load(tmp_path)
    (tmp_path / "weights").write_bytes(serialize({"a": torch.zeros(1)}))
    with pytest.raises(DeltaError, match="but not a delta"):
        te.load(tmp_path / "weights")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DeltaError, match="not a whole safetensors file"):
        te.load(tmp_path / "text")


def test_a_file_larger_than_any_delta_is_refused_unread(tmp_path, monkeypatch):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**32 + 1)  # sparse: takes no space
    with pytest.raises(DeltaError, match="4,294,967,297 bytes is more than any delta holds"):
        te.load(tmp_path / "x")


def test_no_pickle_anywhere():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        for name in ("import pickle", "cloudpickle", "torch.load(", "torch.save(", "joblib", "import dill", "marshal"):
            assert name not in text, f"{path.name} uses {name}"


def test_loading_never_unpickles(good, monkeypatch, tmp_path):
    def never(*arguments, **options):
        raise AssertionError("unpickled")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, never)
    te.load(good)
    (tmp_path / "x").write_bytes(b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94.")
    with pytest.raises(TaskEdgeError):
        te.load(tmp_path / "x")
