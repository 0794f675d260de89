"""Files under their names are whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from taskedge.errors import InputError
from taskedge.io.atomic import folder_aside, write_aside


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_aside(target, b"one")
    write_aside(target, b"two")
    assert target.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_private_file_is_its_owners_only(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        write_aside(tmp_path / "key", b"secret", private=True)
    finally:
        os.umask(mask)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_aside(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_aside(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name a folder that exists"):
        write_aside(tmp_path / "missing" / "file", b"")


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("one", "two"):
        with folder_aside(target) as aside:
            aside.mkdir()
            (aside / content).write_text(content)
            assert not (target / content).exists()
        assert [file.name for file in target.iterdir()] == [content]
        assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")

    def write() -> None:
        with folder_aside(target) as aside:
            aside.mkdir()
            (aside / "new").write_text("new")

    rename, calls = Path.rename, []

    def second_fails(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(InputError, match=r"folder: cannot be written \(No space left on device\)"):
        write()
    assert [file.name for file in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
