"""Data sets by name are read as files are, with class names and splits; without a network a message says what to do."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import tiny_task

from taskedge.cli.main import main
from taskedge.errors import InputError
from taskedge.training.data import hub_data
from taskedge.training.data.hub_data import HubName, parse_hub_name
from taskedge.training.data.table import read_table
from taskedge.training.data.table_readers import column_names

SUFFIXES = (".csv", ".jsonl", ".parquet", ".zip")
NAMES = ["neg", "pos"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def reviews(count: int, seed: int = 0) -> datasets.Dataset:
    """Return a data set as the hub has them: labels are numbers with class names."""
    rows = tiny_task.rows(count, seed)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def folder(here):
    """Return a folder as ``hf download`` leaves it: Parquet files by split."""
    (here / "reviews/data").mkdir(parents=True)
    reviews(24).to_parquet("reviews/data/train-00000-of-00001.parquet")
    reviews(8, seed=1).to_parquet("reviews/data/test-00000-of-00001.parquet")
    return Path("reviews")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imdb", HubName("imdb", None, None)),
        ("imdb:test", HubName("imdb", None, "test")),
        ("stanfordnlp/imdb:train", HubName("stanfordnlp/imdb", None, "train")),
        ("nyu-mll/glue@sst2:validation", HubName("nyu-mll/glue", "sst2", "validation")),
        ("org/set-v1.0", HubName("org/set-v1.0", None, None)),
        ("train.csv", None),
        ("train.csv.gz", None),
        ("train.xyz", None),
        ("data/train", None),
        ("./imdb", HubName("imdb", None, None)),
        ("/no/such/folder:train", None),
        ("a:b:c", None),
    ],
)
def test_what_is_a_name(name, expected, here):
    (here / "data").mkdir()
    assert parse_hub_name(Path(name), SUFFIXES) == expected


def test_a_file_of_that_name_goes_first(here):
    (here / "imdb").write_text("text")
    assert parse_hub_name(Path("imdb"), SUFFIXES) is None


def test_a_folder_of_a_data_set_is_read_with_class_names(folder):
    expected = tiny_task.rows(24)
    table = read_table("reviews:train", "text", "label")
    assert list(zip(table.texts, table.labels, strict=True)) == expected
    assert table.understood == (
        "reviews:train: a data set of the folder, split 'train' (others: 'test'); 24 rows; columns 'text', 'label'"
    )
    assert read_table("reviews:test", "text", "label").texts == [text for text, _ in tiny_task.rows(8, seed=1)]
    assert column_names("reviews:test") == ["text", "label"]
    with pytest.raises(
        InputError, match=r"reviews:tset: no split 'tset'; did you mean 'test'\? \(splits: train, test\)"
    ):
        read_table("reviews:tset", "text")
    with pytest.raises(InputError, match=r"reviews:test: no column 'review'"):
        read_table("reviews:test", "review")


def test_what_save_to_disk_wrote_is_read(here):
    parts = {"a": reviews(4), "b": reviews(6, seed=1)}
    datasets.DatasetDict(parts).save_to_disk("both")
    reviews(5).save_to_disk("one")
    assert len(read_table("both:b", "text", "label")) == 6
    assert read_table("one:train", "text", "label").labels == [label for _, label in tiny_task.rows(5)]


def test_labels_that_are_missing_and_lists_of_classes(here):
    tags = datasets.Features({"tokens": datasets.List(datasets.Value("string")),
                              "tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"]))})  # fmt: skip
    made = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[0, 1]]}, features=tags)
    assert hub_data._values(Path("x"), made, "tags") == [["O", "B-PER"]]
    missing = reviews(2).cast_column("label", datasets.Value("int64")).map(lambda row: {"label": -1})
    missing = missing.cast_column("label", datasets.ClassLabel(names=NAMES))
    assert hub_data._values(Path("x"), missing, "label") == [None, None]
    pictures = datasets.Dataset.from_dict({"image": []}, features=datasets.Features({"image": datasets.Image()}))
    with pytest.raises(InputError, match=r"column 'image' holds image data, .* save the files"):
        hub_data._values(Path("x"), pictures, "image")


class Hub:
    """A hub that is asked once, and gives two data sets."""

    def __init__(self, monkeypatch, failure: Exception | None = None) -> None:
        self.asked: list[str] = []

        def info(api, name, timeout=None):
            self.asked.append(name)
            if failure is not None:
                raise failure

        def load(name, config):
            assert failure is None
            return datasets.DatasetDict(train=reviews(6), test=reviews(2, seed=1))

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
        monkeypatch.setattr(datasets, "load_dataset", load)
        configs = {"imdb": ["plain_text"], "glue": ["cola", "sst2"]}
        monkeypatch.setattr(datasets, "get_dataset_config_names", configs.__getitem__)


def test_a_name_on_the_hub(monkeypatch):
    hub = Hub(monkeypatch)
    table = read_table("imdb", "text", "label")
    assert table.labels == [label for _, label in tiny_task.rows(6)]
    assert "a data set of the hub, split 'train' (others: 'test')" in table.understood
    assert len(read_table("imdb:test", "text")) == 2
    assert hub.asked == ["imdb", "imdb"]


def test_a_configuration_is_named_if_there_are_several(monkeypatch):
    Hub(monkeypatch)
    with pytest.raises(InputError, match="glue: it has the configurations cola, sst2: name one, as in glue@cola"):
        read_table("glue", "text")
    with pytest.raises(InputError, match="no configuration 'sst'; did you mean 'sst2'"):
        read_table("glue@sst", "text")
    assert len(read_table("glue@sst2:test", "text")) == 2


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    hub = Hub(monkeypatch, ConnectionError("Name or service not known"))
    told = (
        r"no file imdb:train, and the hub does not give a data set of that name \(Name or service not known\): .*"
        r"hf download --repo-type dataset imdb --local-dir DIR.* name it as DIR:train"
    )
    with pytest.raises(InputError, match=told):
        read_table("imdb:train", "text")
    assert hub.asked == ["imdb"]


def test_a_folder_that_is_no_data_set(here):
    (here / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty:train: the folder cannot be read as a data set .* save_to_disk"):
        read_table("empty:train", "text")


@pytest.mark.slow
def test_training_and_evaluation_on_splits(folder, capsys):
    tiny_task.bert(Path("base"))
    words = ["--model", "base", "--train", "reviews:train", "--eval", "reviews:test", "--out", "t.safetensors"]
    short = ["--budget", "2%", "--batch-size", "8", "--epochs", "1", "--threads", "1"]
    assert main(["tune", *words, *short]) == 0
    assert "split 'train' (others: 'test'); 24 rows; columns 'text', 'label'" in capsys.readouterr().err
    assert main(["eval", "t.safetensors", "--data", "reviews:test"]) == 0
    assert "accuracy" in capsys.readouterr().out
