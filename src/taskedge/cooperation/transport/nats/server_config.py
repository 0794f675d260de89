"""What the NATS server is told: who may connect, and what each one may say and hear.

Subjects, for a device ``edge0``:

    taskedge.task.edge0            coordinator to device: a task, its answer's subject as the reply
    taskedge.who                   coordinator to all: say that you are there
    taskedge.up.edge0.here         device: I am there
    taskedge.up.edge0.say.ID       device: something unasked
    taskedge.up.edge0.answer.ID    device: the answer to the task with this id

A device hears its own tasks and ``who``, and speaks below its own name; the server enforces both, so the subject that
a message came on proves its sender. Answers go to a subject of the device's own and not to a reply inbox: a device
that reconnected in the meantime may still answer, nobody else can, and no other device can read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREFIX = "taskedge"
WHO = f"{PREFIX}.who"
GONE = "$SYS.ACCOUNT.FLEET.DISCONNECT"
"""What the server itself says when a connection ends."""
MAX_PAYLOAD = 8 * 2**20
OLDEST_SERVER = (2, 10, 4)
"""The first that can begin with TLS, before it has said anything in plain text."""


def task_subject(device: str) -> str:
    """Where a device hears its tasks."""
    return f"{PREFIX}.task.{device}"


def up_subject(device: str, *rest: str) -> str:
    """Where a device speaks."""
    return ".".join((f"{PREFIX}.up", device, *rest))


def server_config(
    folder: Path, *, name: str, listen: str, port: int, coordinator: str, devices: Mapping[str, str]
) -> str:
    """The server's configuration file, for the fleet whose keys are in ``folder``.

    Args:
        coordinator: the subject of its certificate.
        devices: subject of the certificate by name; whoever is not listed cannot connect.
    """
    folder = folder.resolve()
    users = [_user(coordinator, hears=[up_subject("*", ">"), GONE], says=[task_subject("*"), WHO])]
    users += [
        _user(subject, hears=[task_subject(device), WHO], says=[up_subject(device, ">")])
        for device, subject in sorted(devices.items())
    ]
    config: dict[str, Any] = {
        "server_name": name,
        "host": listen,
        "port": port,
        "pid_file": str(folder / "server.pid"),
        "log_file": str(folder / "server.log"),
        "logfile_size_limit": 16 * 2**20,
        "logfile_max_num": 2,
        "max_payload": MAX_PAYLOAD,
        "max_pending": 128 * 2**20,  # the largest message, in parts, may wait for a slow device
        "write_deadline": "30s",
        "ping_interval": "2s",
        "ping_max": 2,
        "tls": {
            "cert_file": str(folder / "server.pem"),
            "key_file": str(folder / "server.key"),
            "ca_file": str(folder / "authority.pem"),
            "verify_and_map": True,
            # Else the server speaks first, in plain text, and whoever sits between can talk the client out of TLS.
            "handshake_first": True,
            "timeout": 10,
        },
        "system_account": "SYS",
        "accounts": {
            "SYS": {"exports": [{"stream": GONE}]},
            "FLEET": {"imports": [{"stream": {"account": "SYS", "subject": GONE}}], "users": users},
        },
    }
    return "# Written by taskedge at every enrol and revoke: changes made here are lost.\n" + json.dumps(
        config, indent=1
    )


def _user(subject: str, *, hears: list[str], says: list[str]) -> dict[str, Any]:
    return {"user": subject, "permissions": {"subscribe": hears, "publish": says}}
