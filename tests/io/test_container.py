"""A container is read completely, matches its digest and its format, or is refused."""

import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.errors import DeltaError, InputError
from taskedge.io.container import ContainerKind, content_digest, deserialize, serialize

KIND = ContainerKind(
    name="sample",
    key="sample",
    error=DeltaError,
    max_bytes=4096,
    format="sample/2",
    older_formats=("sample/1", ""),
    without_digest=("sample/1",),
    remedy="make it again",
)
PLAIN = ContainerKind(name="plain sample", key="state", error=InputError)
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.zeros(0, 2, dtype=torch.bfloat16)}


def file_of(header, tensors=None, *, digest=None, key="sample"):
    """A file with any header and digest."""
    tensors = TENSORS if tensors is None else tensors
    text = header if isinstance(header, str) else json.dumps(header)
    metadata = {key: text}
    if digest is not None:
        metadata["digest"] = content_digest(text, tensors) if digest == "right" else digest
    return serialize(tensors, metadata)


def test_header_and_tensors_go_round(tmp_path):
    KIND.write(tmp_path / "x", {"n": 1, "text": "ä\u2028"}, TENSORS)
    container = KIND.read(tmp_path / "x")
    assert container.header == {"format": "sample/2", "n": 1, "text": "ä\u2028"}
    assert json.loads(container.text) == container.header
    assert container.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert container.tensors[name].dtype == tensor.dtype
        assert torch.equal(container.tensors[name], tensor)


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text() | st.none() | st.booleans(), max_size=4))
def test_any_header_goes_round(header):
    header.pop("format", None)
    assert PLAIN.unpack(PLAIN.pack(header, {})).header == header


def test_equal_content_gives_equal_bytes():
    contents = {KIND.pack({"n": 1}, dict(sorted(TENSORS.items(), key=lambda _: random.random()))) for _ in range(20)}
    assert len(contents) == 1


def test_views_and_non_contiguous_tensors_are_stored_by_value():
    matrix = torch.arange(6.0).view(2, 3)
    tensors = PLAIN.unpack(PLAIN.pack({}, {"transposed": matrix.t(), "column": matrix[:, 1]})).tensors
    assert torch.equal(tensors["transposed"], matrix.t())
    assert torch.equal(tensors["column"], matrix[:, 1])


def test_a_header_that_is_not_json_is_a_type_error():
    with pytest.raises(TypeError):
        KIND.pack({"x": object()}, {})


def test_every_flipped_bit_of_tensors_and_header_is_detected():
    content = KIND.pack({"n": 1}, TENSORS)
    length = int.from_bytes(content[:8], "little")
    start = content.index(b'n\\":1')
    for index in [*range(start, start + 5), *range(8 + length, len(content))]:
        for bit in range(8):
            damaged = bytearray(content)
            damaged[index] ^= 1 << bit
            with pytest.raises(DeltaError):
                KIND.unpack(bytes(damaged))


@pytest.mark.parametrize("length", [0, 7, 20, -1])
def test_a_truncated_file_is_refused(length):
    with pytest.raises(DeltaError, match=r"the sample is damaged .*: make it again"):
        KIND.unpack(KIND.pack({}, TENSORS)[:length])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (file_of({"format": "sample/2"}), "its digest is missing"),
        (file_of({}), "its digest is missing"),
        (file_of({"format": "sample/2"}, digest="00"), "does not match its digest"),
        (file_of({"format": "sample/1"}, digest="00"), "does not match its digest"),
        (file_of({"format": "sample/3"}, digest="right"), "format 'sample/3'; this version reads sample/2, sample/1, "),
        (file_of({"format": ["x"]}, digest="right"), r"format \['x'\]"),
        (file_of("{", digest="right"), "not a JSON object"),
        (file_of("[]", digest="right"), "not a JSON object"),
        (file_of("[" * 100_000, digest="right"), "not a JSON object"),
        (file_of({}, key="other"), "not a sample: it has no metadata 'sample'"),
        (serialize(TENSORS), "not a sample"),
    ],
)
def test_what_is_not_of_the_kind_is_refused(content, message):
    with pytest.raises(DeltaError, match=message):
        KIND.unpack(content)


def test_older_formats_are_read():
    assert KIND.unpack(file_of({"format": "sample/1"})).tensors.keys() == TENSORS.keys()
    assert KIND.unpack(file_of({"format": "sample/1"}, digest="right")).header == {"format": "sample/1"}
    assert KIND.unpack(file_of({}, digest="right")).header == {}


def test_the_digest_can_cover_text_of_another_file():
    content = PLAIN.pack({}, TENSORS, also_digest="log")
    assert PLAIN.unpack(content, also_digest="log").header == {}
    with pytest.raises(InputError, match="does not match its digest"):
        PLAIN.unpack(content, also_digest="another log")


def test_messages_name_the_path(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"text")
    with pytest.raises(DeltaError, match=f"^{path}: the sample is damaged"):
        KIND.read(path)
    with pytest.raises(InputError, match=f"^{path / 'none'}: cannot be read"):
        KIND.read(path / "none")


def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(bytes(4097))
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda _: pytest.fail("read"))
    with pytest.raises(DeltaError, match=r"4,097 bytes is more than any sample holds \(4,096\)"):
        KIND.read(path)


def test_bytes_without_metadata_are_read():
    metadata, tensors = deserialize(serialize(TENSORS))
    assert metadata == {}
    assert tensors.keys() == TENSORS.keys()


@given(st.binary(max_size=200))
def test_noise_is_refused(noise):
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        deserialize(noise)
