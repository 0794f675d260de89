"""systemd units, as text, for a device and for the server of a fleet: started at boot, and again when they end."""

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
    """Return a unit that keeps a device in its fleet: it restarts ``command``, which joins, whenever that ends.

    A device whose training hangs ends its process, because a thread cannot be stopped. The unit brings it back.

    Raises:
        InputError: The program's path is not absolute, or a word has control characters.
    """
    return _DEVICE.format(name=name, command=_command_line(command), user=user)


def server_unit(name: str, folder: Path, program: Path, user: str) -> str:
    """Return a unit for the server of the fleet in ``folder``. Enrolling and revoking still reach the server.

    Args:
        name: Name of the fleet.
        folder: The fleet's folder.
        program: The server's program.
        user: Owner of the folder, who runs the server.

    Raises:
        InputError: The program's path is not absolute, or a path has control characters.
    """
    folder = folder.resolve()
    command = _command_line([program, "-c", folder / "server.conf"])
    return _SERVER.format(name=name, command=command, user=user, folder=_quote(str(folder)))


def _command_line(words: Sequence[str | Path]) -> str:
    if not Path(words[0]).is_absolute():
        raise InputError(f"{words[0]}: systemd needs the absolute path of a program")
    return " ".join(_quote(str(word)).replace("$", "$$") for word in words)


def _quote(text: str) -> str:
    """Quote a word so that systemd reads it back unchanged: one word, with nothing expanded."""
    if any(ord(character) < 32 for character in text):
        raise InputError(f"{text!r}: a unit cannot hold control characters")
    text = text.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if not text or set(text) & set(" '\";\\") else text
