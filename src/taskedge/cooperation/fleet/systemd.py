"""systemd units, as text: a device and a server that are started with the machine and again when they end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taskedge.errors import InputError

_DEVICE = """\
[Unit]
Description=TaskEdge device {name}
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={command}
User={user}
Restart=always
RestartSec=2
NoNewPrivileges=yes
ProtectSystem=full
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""
_SERVER = """\
[Unit]
Description=TaskEdge server of fleet {name}
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
User={user}
Restart=always
RestartSec=1
LimitNOFILE=65536
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={folder}
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def device_unit(name: str, command: Sequence[str | Path], user: str) -> str:
    """A unit that keeps a device in its fleet: ``command`` joins it, and is started again whenever it ends.

    A step that hangs cannot be stopped from within: the device ends itself, and this brings it back.
    """
    return _DEVICE.format(name=name, command=_command(command), user=user)


def server_unit(name: str, folder: Path, program: Path, user: str) -> str:
    """A unit for the server of the fleet in ``folder``, run by the folder's owner; enrol and revoke still reach it."""
    folder = folder.resolve()
    command = _command([program, "-c", folder / "server.conf"])
    return _SERVER.format(name=name, command=command, user=user, folder=_quoted(str(folder)))


def _command(parts: Sequence[str | Path]) -> str:
    if not Path(parts[0]).is_absolute():
        raise InputError(f"{parts[0]}: systemd wants the whole path of a program")
    return " ".join(_quoted(str(part)).replace("$", "$$") for part in parts)


def _quoted(text: str) -> str:
    """As systemd reads it back: one word, nothing expanded."""
    if any(ord(character) < 32 for character in text):
        raise InputError(f"{text!r}: a unit cannot hold control characters")
    text = text.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if not text or set(text) & set(" '\";\\") else text
