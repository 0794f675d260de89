"""A file or folder under its final name is complete, on the disk, or not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from taskedge.errors import InputError
from taskedge.io.atomic import (
    WriteError,
    append,
    atomic_file,
    atomic_folder,
    move_atomic,
    require_writable,
    write_atomic,
)


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"one")
    write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_private_file_is_its_owners_only(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        write_atomic(tmp_path / "key", b"secret", private=True)
    finally:
        os.umask(mask)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\): make it, or name a folder that exists"):
        write_atomic(tmp_path / "missing" / "file", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("one", "two"):
        with atomic_folder(target) as tmp:
            (tmp / content).write_text(content)
            assert not (target / content).exists()
        assert [file.name for file in target.iterdir()] == [content]
        assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")

    def write() -> None:
        with atomic_folder(target) as tmp:
            (tmp / "new").write_text("new")

    rename, calls = Path.rename, []

    def second_fails(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", second_fails)
    monkeypatch.setattr("taskedge.io.atomic._swap_names", lambda *names: False)  # as on other systems
    with pytest.raises(InputError, match=r"folder: cannot be written \(No space left on device\)"):
        write()
    assert [file.name for file in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux swaps names")
def test_a_folder_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between two renames would leave no folder under the name."""
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")
    monkeypatch.setattr(Path, "rename", None)
    with atomic_folder(target) as tmp:
        (tmp / "new").write_text("new")
    assert [file.name for file in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def write(atomic: Callable[[Path], AbstractContextManager[Path]], name: str) -> None:
        with atomic(tmp_path / name) as tmp:
            (tmp / "file" if tmp.is_dir() else tmp).write_bytes(b"half")
            raise error

    for atomic in (atomic_file, atomic_folder):
        with pytest.raises(error):
            write(atomic, "name")
    assert list(tmp_path.iterdir()) == []


def test_the_reason_of_a_failed_write_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError) as caught, atomic_folder(tmp_path / "file" / "folder"):
        pass
    assert caught.value.reason in ("Not a directory", "File exists")


def test_a_missing_parent_of_a_folder_is_named_too(tmp_path: Path) -> None:
    """Files and folders follow one rule: a typo in a path makes no folders."""
    with pytest.raises(WriteError, match=r"a\): make it, or name"), atomic_folder(tmp_path / "a/b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_folder_have_the_modes_of_the_umask(tmp_path: Path) -> None:
    """safetensors writes files of mode 0600, which a server under another account cannot read."""
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            with atomic_folder(tmp_path / "folder") as tmp:
                (tmp / "inner").mkdir()
                for name in ("weights", "inner/weights", "script"):
                    (tmp / name).write_text("content")
                    (tmp / name).chmod(0o700 if name == "script" else 0o600)
        finally:
            os.umask(before)
        for name in ("weights", "inner/weights"):
            assert (tmp_path / "folder" / name).stat().st_mode & 0o777 == mode
        assert (tmp_path / "folder" / "script").stat().st_mode & 0o777 == mode | 0o100


def test_files_of_a_private_folder_keep_their_modes(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "folder", private=True) as tmp:
        (tmp / "key").write_text("secret")
        (tmp / "key").chmod(0o600)
    assert (tmp_path / "folder" / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_file_stays_one(tmp_path: Path, exists: bool) -> None:
    """The target is replaced, also where it does not exist yet."""
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "target"
    if exists:
        target.write_text("old")
    (tmp_path / "link").symlink_to("there/target")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"
    assert list((tmp_path / "there").iterdir()) == [target]
    (tmp_path / "source").write_text("newer")
    move_atomic(tmp_path / "source", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert target.read_text() == "newer"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "there"]


def test_a_link_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("missing/target")
    with pytest.raises(WriteError, match=r"link: cannot be written \(there is no folder .*missing\)"):
        write_atomic(tmp_path / "link", b"new")


def test_a_move_to_another_file_system_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_text("new")
    replace = Path.replace

    def only_within_one(self: Path, to: Path) -> Path:
        if self.name == "source":
            raise OSError(18, "Invalid cross-device link")
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", only_within_one)
    move_atomic(tmp_path / "source", tmp_path / "target")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"target": "new"}


def test_a_private_folder_is_its_owners_only(tmp_path: Path) -> None:
    for private, mode in ((True, 0o700), (False, 0o777 & ~_umask())):
        with atomic_folder(tmp_path / "folder", private=private) as tmp:
            assert tmp.stat().st_mode & 0o777 == mode
        assert (tmp_path / "folder").stat().st_mode & 0o777 == mode


def test_a_folder_that_appears_in_the_meantime_is_kept_if_asked(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_folder(target, replace=False) as tmp:
        (tmp / "mine").write_text("")
        target.mkdir()
        (target / "theirs").write_text("")
    assert [file.name for file in target.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with atomic_folder(tmp_path / "link") as tmp:
        (tmp / "file").write_text("")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "file").exists()


def test_content_and_names_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, flushed = os.fsync, []

    def watched(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomic(tmp_path / "file", b"content")
    assert flushed[0].startswith(".file.")
    assert flushed[1:] == [tmp_path.name]
    flushed.clear()
    with atomic_folder(tmp_path / "folder") as tmp:
        (tmp / "inner").mkdir()
        (tmp / "inner" / "file").write_text("content")
    assert set(flushed) >= {"inner", "file", tmp.name, tmp_path.name}
    flushed.clear()
    with atomic_folder(tmp_path / "cache", flush=False) as tmp:
        (tmp / "file").write_text("content")
    assert flushed == [tmp_path.name]


def test_a_file_system_that_cannot_flush_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_folders(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", no_folders)
    write_atomic(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_output_is_tried_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "x")
    os.mkfifo(tmp_path / "pipe")
    for path, reason in [
        (Path("/proc/x"), "/proc/x: cannot be written"),
        (tmp_path / "link", "there is no folder"),
        (tmp_path / "pipe", "it is neither a file nor a folder"),
    ]:
        with pytest.raises(WriteError, match=reason):
            require_writable(path)
    for path in (tmp_path / "new", tmp_path):
        require_writable(path)
    assert {path.name for path in tmp_path.iterdir()} == {"link", "pipe"}


def test_content_is_appended_and_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("taskedge.io.atomic.os.fsync", flushed.append)
    for content in (b"one", b"two"):
        append(tmp_path / "x", content)
    assert (tmp_path / "x").read_bytes() == b"onetwo"
    assert len(flushed) == 2
    with pytest.raises(WriteError, match="cannot be written"):
        append(tmp_path, b"")
