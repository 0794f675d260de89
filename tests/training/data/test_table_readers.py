"""Every format gives back what was written; unusable content is refused with its row and a way out."""

import contextlib
import csv
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from taskedge.errors import InputError
from taskedge.training.data.table import Table, read_table
from taskedge.training.data.table_readers import column_names


def write_csv(path, rows, separator=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([("text", "label"), *rows])


def write_tsv(path, rows):
    write_csv(path, rows, "\t")


def write_jsonl(path, rows):
    path.write_bytes("".join(json.dumps({"text": t, "label": y}, ensure_ascii=False) + "\n" for t, y in rows).encode())


def write_parquet(path, rows):
    texts, labels = zip(*rows, strict=True)
    parquet.write_table(pyarrow.table({"text": list(texts), "label": list(labels)}), path)


WRITERS = {".csv": write_csv, ".tsv": write_tsv, ".jsonl": write_jsonl, ".parquet": write_parquet}
something = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WRITERS)
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(something, something), min_size=1, max_size=8))
def test_any_unicode_is_read_back(suffix, rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"rows{suffix}")
        WRITERS[suffix](path, rows)
        table = read_table(path, "text", "label", strip_labels=False)
        assert list(zip(table.texts, table.labels, strict=True)) == rows
        assert [file.name for file in Path(folder).iterdir()] == [path.name]


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=60), suffix=st.sampled_from(sorted(WRITERS)))
def test_any_bytes_give_a_table_or_an_input_error(content, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"rows{suffix}")
        path.write_bytes((b"text,label\n" if suffix == ".csv" else b"") + content)
        with contextlib.suppress(InputError):
            table = read_table(path, "text", "label")
            assert len(table.texts) == len(table.labels) > 0
            assert all(value.strip() for value in table.texts + table.labels)


@pytest.fixture
def written(tmp_path):
    def write(content, name="rows.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", "\ufefftext,label\na b,1\n"),
        ("crlf.csv", "text,label\r\na b,1\r\n"),
        ("cr.csv", "text,label\ra b,1\r"),
        ("blank.csv", "\ntext,label\n\na b,1\n\n\n"),
        ("no-end.csv", "text,label\na b,1"),
        ("more.csv", "id,label,text\n7,1,a b\n"),
        ("SHOUT.CSV", "text,label\na b,1\n"),
        ("odd[1]*?.csv", "text,label\na b,1\n"),
        ("tabs.tsv", "text\tlabel\na b\t1\n"),
        ("bom.jsonl", '\ufeff{"text": "a b", "label": 1}\n'),
        ("excel.csv", "text,label\r\na b,1\r\n".encode("utf-16")),
        ("semicolons.csv", "text;label\na b;1\n"),
        ("packed.csv.gz", gzip.compress(b"text,label\na b,1\n", mtime=0)),
        ("packed.csv", gzip.compress(b"text,label\na b,1\n", mtime=0)),
        ("packed.jsonl.gz", gzip.compress(b'{"text": "a b", "label": 1}\n', mtime=0)),
        ("array.json", '[{"text": "a b", "label": 1}]'),
        ("array.json.gz", gzip.compress(b'[{"text": "a b", "label": 1}]', mtime=0)),
        ("crlf.jsonl", '{"text": "a b", "label": 1.0}\r\n\r\n'),
        ("no-end.ndjson", '{"label": "1", "text": "a b"}'),
    ],
)
def test_the_habits_of_programs_that_write_tables(written, name, content):
    path = written(content, name)
    assert read_table(path, "text", "label") == Table(path, ["a b"], ["1"])
    assert read_table(str(path), ["text"]) == Table(path, ["a b"])


def test_quoted_line_breaks_and_very_long_fields(written):
    long = "x" * 1_000_000
    before = csv.field_size_limit()
    assert read_table(written(f'text,label\n"a\r\nb\nc ""d""",1\n{long},2\n'), "text").texts == ['a\r\nb\nc "d"', long]
    assert csv.field_size_limit() == before


def test_columns_may_be_called_anything(written):
    table = read_table(written("--label,label,na me\na,b,c\n"), "--label", "na me")
    assert (table.texts, table.labels) == (["a"], ["c"])


def test_parquet_numbers_and_class_names(tmp_path):
    path = tmp_path / "odd[1]*.parquet"
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    columns = {"text": ["x", "y", "z"], "label": [1, 0, 1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    assert read_table(path, "text", "label").labels == ["good", "bad", "good"]
    datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, -1]}, features=features).to_parquet(path)
    with pytest.raises(InputError, match="row 2: 'label' is empty"):
        read_table(path, "text", "label")
    datasets.Dataset.from_dict(columns).to_parquet(path)
    assert read_table(path, "text", "label").labels == ["1", "0", "1"]
    datasets.Dataset.from_dict({"text": ["x", "y"], "label": [2.0, None]}).to_parquet(path)
    with pytest.raises(InputError, match=r"row 2: 'label' is empty"):
        read_table(path, "text", "label")


@pytest.mark.slow
def test_parquet_is_read_anew_and_leaves_nothing_behind(tmp_path):
    code = """if True:
        import socket, sys
        socket.socket.connect = socket.getaddrinfo = None  # no network
        import datasets
        from taskedge.training.data.table import Table, read_table
        for label in "ab":
            datasets.Dataset.from_dict({"text": ["x"], "label": [label]}).to_parquet("rows.parquet")
            assert read_table("rows.parquet", "text", "label").labels == [label]
    """
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | home, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert [path.name for path in tmp_path.rglob("*")] == ["rows.parquet"]


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (["txt", "label"], [["a"], ["b"]], "no column 'text'; did you mean 'txt'"),
        (["text", "text", "label"], [["a"], ["b"], ["c"]], "2 columns are called 'text'"),
        (["text", "label"], [[], []], "no rows"),
        (["text", "label"], [["a", "b"], [0.5, None]], "row 2: 'label' is empty"),
        (["text", "label"], [["a", "b"], [0.5, float("nan")]], "row 2: 'label' is empty"),
        (["text", "label"], [[b"a"], ["b"]], "row 1: column 'text' holds a value of type bytes"),
    ],
)
def test_what_cannot_be_used_in_parquet(tmp_path, names, columns, message):
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table(columns, names=names), path)
    with pytest.raises(InputError, match=message):
        read_table(path, "text", "label")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_table(path, "text", "label")


def test_columns_that_are_not_asked_for_do_not_matter(tmp_path):
    path = tmp_path / "x.parquet"
    columns = [["a"], [1], [[1]], [b"\xff"]]
    parquet.write_table(pyarrow.table(columns, names=["te.xt", "label", "other", "other"]), path)
    assert read_table(path, "te.xt", "label") == Table(path, ["a"], ["1"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "", "is empty"),
        ("x.parquet", "", "is empty"),
        ("x.csv", "text,label\n", "no rows"),
        ("x.jsonl", "\n\n", "no rows"),
        ("x.xlsx", "?", "spreadsheets are not read: save the sheet as CSV"),
        ("x.csw", "?", r"unknown suffix '\.csw'; did you mean '\.csv'\?"),
        ("x.parquet.gz", "?", r"unknown suffix '\.parquet\.gz'.*with \.gz all but \.parquet"),
        ("x.csv.gz", "text,label\na,b\n", "is not compressed with gzip: take .gz off its name"),
        ("x.json", "[]", r"\(JSON array in UTF-8\) has no rows"),
        ("x", "text,label\na,b\n", "unknown suffix ''"),
        ("x.csv", "txet,label\na,b\n", r"no column 'text'; did you mean 'txet'\? \(columns: 'txet', 'label'\)"),
        ("x.csv", "text,Label,text\na,b,c\n", "2 columns are called 'text'"),
        ("x.csv", 'text,label\n"a\nb",1\n  ,2\n', r"row 2: 'text' is empty \(1 such rows\).*counted from 1"),
        ("x.csv", "text,label\na,1\nb,\n", "row 2: 'label' is empty"),
        ("x.csv", "text,label\na,1\n\nb\n", "row 2: 1 fields where the header has 2"),
        ("x.csv", "text,label\na,b,1\nb,c,2\n", "row 1: 3 fields where the header has 2"),
        ("x.csv", 'text,label\na,1\n"b,2\nc,3\n', "row 2: not valid CSV"),
        ("x.csv", '"text,label\na,1\n', "header: not valid CSV"),
        ("x.csv", b'text,label\n"a\n",1\nb\xff,2\n', "row 2: byte 0xff is not UTF-8"),
        ("x.csv", b'text,label\na,1\n"\xe9",2\n', "row 2: byte 0xe9 is not UTF-8"),
        ("x.csv", b"\xef\xbb\xbftext,label\n\xe9,1\n", "row 1: byte 0xe9 is not UTF-8"),
        ("x.jsonl", b'{"text": "a", "label": 1}\n\n{"text": "\xe9"}\n', "row 2: byte 0xe9 is not UTF-8"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "row 2: not valid JSON"),
        ("x.jsonl", "[" * 100_000, "row 1: not valid JSON"),
        ("x.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}", "row 1: not valid JSON"),
        ("x.jsonl", '["a"]\n', "row 1: not an object"),
        ("x.jsonl", '{"text": "a", "text": "b", "label": 1}\n', "row 1: .*occurs twice"),
        ("x.jsonl", '{"text": "a", "lable": 1}\n', "no column 'label'; did you mean 'lable'"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "row 2: 'label' is empty"),
        ("x.jsonl", '{"text": "a", "label": NaN}\n', "row 1: 'label' is empty"),
        ("x.jsonl", '{"text": null, "label": 1}\n', "row 1: 'text' is empty"),
        ("x.jsonl", '{"text": ["a"], "label": 1}\n', "row 1: column 'text' holds a value of type list"),
        ("x.jsonl", '{"text": "a", "label": {"b": 1}}\n', "row 1: column 'label' holds a value of type dict"),
        ("x.jsonl", '{"text": "\\ud83d", "label": 1}\n', "row 1: column 'text' holds half of a surrogate pair"),
        ("x.parquet", "text,label\n", "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_used(written, name, content, message):
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)) as caught:
        read_table(written(content, name), "text", "label")
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "understood"),
    [
        ("a.csv", "text;label\na,b;1\n", "CSV in UTF-8, separated by ';'; 1 row; columns 'text', 'label'"),
        ("a.csv", "text\na,b\n".encode("utf-16"), "row 1: 2 fields"),
        ("a.tsv", "text\tlabel\na,b\t1\n", "CSV in UTF-8, separated by tabs; 1 row; columns 'text', 'label'"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 2, mtime=0),
            "JSON lines in UTF-8, gzip; 2 rows; columns 'text'",
        ),
        ("a.txt", "one\ntwo\n", "plain text in UTF-8, a row for each line; 2 rows; columns 'text'"),
        (
            "a.jsonl",
            json.dumps({f"c{i}": "x" for i in range(20)} | {"text": "a"}),
            "JSON lines in UTF-8; 1 row; columns " + ", ".join(f"'c{i}'" for i in range(12)) + " and 9 more",
        ),
    ],
)
def test_what_was_understood(written, name, content, understood):
    path = written(content, name)
    if understood.startswith("row"):
        with pytest.raises(InputError, match=understood):
            read_table(path, "text")
    else:
        assert read_table(path, "text").understood == f"{path}: {understood}"


def test_chats_and_instructions_have_prompts(written):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = written(json.dumps({"messages": turns}) + "\n", "chat.jsonl")
    assert column_names(path) == ["messages", "prompt", "response"]
    table = read_table(path, "prompt", "response")
    assert (table.texts, table.labels) == (["q"], ["a"])
    assert table.understood.endswith("columns 'messages'; the prompt is the first turn of the user, the response that "
                                     "of the assistant in 'messages'")  # fmt: skip
    path = written(json.dumps({"instruction": "q", "output": "a", "text": "all"}) + "\n", "alpaca.jsonl")
    assert column_names(path) == ["instruction", "output", "text"]
    assert read_table(path, "prompt", "response").labels == ["a"]
    with pytest.raises(InputError, match=r"no column 'label' \(columns: 'instruction', 'output', 'text', 'prompt'"):
        read_table(path, "prompt", "label")


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_missing_file_names_its_neighbours(tmp_path, suffix):
    write_csv(tmp_path / "train.csv", [("a", "b")])
    with pytest.raises(InputError, match=r"no file .*trian.*did you mean 'train\.csv'"):
        read_table(tmp_path / f"trian{suffix}", "text")
    with pytest.raises(InputError, match=r"holds train\.csv"):
        read_table(tmp_path / f"something-else-entirely{suffix}", "text")
    with pytest.raises(InputError, match="no folder"):
        read_table(tmp_path / "nowhere" / f"train{suffix}", "text")


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_folder_is_not_a_file(tmp_path, suffix):
    (tmp_path / f"x{suffix}").mkdir()
    with pytest.raises(InputError, match="cannot read"):
        read_table(tmp_path / f"x{suffix}", "text")


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n\r\nthree\r\n")
    (tmp_path / "b.txt").write_text("one\n  two\n")
    assert read_table(tmp_path / "a.txt", "text").texts == ["one\ntwo", "three"]
    assert read_table(tmp_path / "b.txt", "text").texts == ["one", "  two"]
    (tmp_path / "c.txt").write_bytes(b"one\n\xe9")
    with pytest.raises(InputError, match=r"c\.txt, row 2: byte 0xe9 is not UTF-8"):
        read_table(tmp_path / "c.txt", "text")
    with pytest.raises(InputError, match="no column 'label'"):
        read_table(tmp_path / "a.txt", "text", "label")
    (tmp_path / "d.txt").write_text("\n\n \n")
    with pytest.raises(InputError, match="no rows"):
        read_table(tmp_path / "d.txt", "text")


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_names_of_columns(tmp_path, suffix):
    WRITERS[suffix](tmp_path / f"x{suffix}", [("a", "b")])
    assert column_names(tmp_path / f"x{suffix}") == ["text", "label"]
    with pytest.raises(InputError, match="no file"):
        column_names(tmp_path / f"y{suffix}")
