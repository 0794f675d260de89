"""The text of a file is unpacked and decoded; other content is recognized by name."""

from __future__ import annotations

import codecs
import gzip

import pytest

from taskedge.errors import InputError
from taskedge.training.data.file_text import read_text

TEXT = "text,label\nété 零,1\n"


def read(tmp_path, content, name="x.csv"):
    (tmp_path / name).write_bytes(content)
    return read_text(tmp_path / name, lambda beginning: beginning.count("\n"))


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (TEXT.encode(), "UTF-8"),
        (codecs.BOM_UTF8 + TEXT.encode(), "UTF-8 with a byte order mark"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), "UTF-16"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "UTF-16"),
        (TEXT.encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (TEXT.encode("utf-16-be"), "UTF-16 without a byte order mark"),
        (TEXT.encode("utf-32"), "UTF-32"),
        (gzip.compress(TEXT.encode("utf-16"), mtime=0), "UTF-16, gzip"),
    ],
)
def test_encodings(tmp_path, content, encoding):
    found = read(tmp_path, content)
    assert (found.text, found.encoding) == (TEXT, encoding)


def test_a_zero_character_is_no_encoding(tmp_path):
    assert read(tmp_path, b"text\na\0b\n").text == "text\na\0b\n"


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        (b"", "x.csv", "x.csv is empty"),
        (codecs.BOM_UTF8, "x.csv", "x.csv is empty"),
        (gzip.compress(b"", mtime=0), "x.csv.gz", "x.csv.gz is empty"),
        (gzip.compress(TEXT.encode() * 9, mtime=0)[:-9], "x.csv.gz", "the gzip file is damaged"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-8] + b"12345678", "x.csv.gz", "the gzip file is damaged"),
        (b"\x1f\x8b\x08 not gzip", "x.csv", "the gzip file is damaged"),
        (TEXT.encode(), "x.csv.gz", "not compressed with gzip"),
        (b"PK\x03\x04...", "x.csv", "a ZIP archive or a spreadsheet: save the sheet as CSV"),
        (b"PAR1...", "x.csv", "is Parquet"),
        ("text\na\né\n".encode("latin-1"), "x.csv", "row 2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (codecs.BOM_UTF16_LE + "text\na\n".encode("utf-16-le") + b"\x00", "x.csv", "row 2: byte 0x00 is not UTF-16"),
    ],
)
def test_what_is_no_text(tmp_path, content, name, told):
    with pytest.raises(InputError, match=told):
        read(tmp_path, content, name)
