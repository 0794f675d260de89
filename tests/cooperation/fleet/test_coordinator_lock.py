"""At most one coordinator per folder, and its process id only if it is certain."""

from __future__ import annotations

import os

import pytest

from taskedge.cooperation.fleet import coordinator_lock
from taskedge.cooperation.fleet.coordinator_lock import coordinator_pid, hold_coordinator_lock, is_coordinated
from taskedge.errors import InputError


def test_one_coordinator_at_a_time(tmp_path):
    assert not is_coordinated(tmp_path)
    with hold_coordinator_lock(tmp_path):
        assert is_coordinated(tmp_path)
        assert coordinator_pid(tmp_path) == os.getpid()
        with pytest.raises(InputError, match="another coordinator"), hold_coordinator_lock(tmp_path):
            pass
    assert not is_coordinated(tmp_path)
    assert coordinator_pid(tmp_path) is None


def test_a_failed_attempt_keeps_the_holders_id(tmp_path, start_coordinator):
    process = start_coordinator(tmp_path)
    with pytest.raises(InputError, match="another coordinator"), hold_coordinator_lock(tmp_path):
        pass
    assert coordinator_pid(tmp_path) == process.pid


def test_the_lock_ends_with_the_process_however_that_ends(tmp_path, start_coordinator):
    process = start_coordinator(tmp_path)
    process.kill()
    process.wait(60)
    assert not is_coordinated(tmp_path)
    with hold_coordinator_lock(tmp_path):
        assert coordinator_pid(tmp_path) == os.getpid()


@pytest.mark.parametrize("written", ["", "999999999", "x"])
def test_an_id_that_is_not_the_holders_is_not_given(tmp_path, written):
    with hold_coordinator_lock(tmp_path):
        (tmp_path / ".coordinator").write_text(written)
        with pytest.raises(InputError, match="does not say which process it is"):
            coordinator_pid(tmp_path)


def test_another_users_coordinator_is_named(tmp_path, monkeypatch):
    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(coordinator_lock, "_has_open", forbidden)
    with hold_coordinator_lock(tmp_path), pytest.raises(InputError, match=f"another user's process .{os.getpid()}"):
        coordinator_pid(tmp_path)
