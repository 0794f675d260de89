"""The NATS server's configuration: who may connect, and which subjects each one may publish and subscribe to.

Subjects, for a device ``edge0``:

    taskedge.task.edge0            coordinator to device: a task, with its answer's subject as the reply
    taskedge.who                   coordinator to all: report that you are there
    taskedge.up.edge0.here         device: the report
    taskedge.up.edge0.answer.ID    device: the answer to the task with this id

A device subscribes to its own tasks and ``who``, and publishes these two kinds below its own name. The server enforces
both, so the subject of a message proves its sender. The coordinator has a subscription for each device, which it ends
while the device floods. Answers go to a subject of the device and not to a reply inbox: a device that
reconnected in the meantime can still answer, no other device can, and no other device can read the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREFIX = "taskedge"
WHO = f"{PREFIX}.who"
GONE = "$SYS.ACCOUNT.FLEET.DISCONNECT"
"""Subject of the server's own events when a connection ends."""
MAX_PAYLOAD = 2 * 2**20
"""Largest frame: one chunk of a message and its header, with room to spare."""
OLDEST_SERVER = (2, 10, 4)
"""The first version that can begin with TLS, before it sends anything in plain text."""


def task_subject(device: str) -> str:
    """Return the subject of a device's tasks."""
    return f"{PREFIX}.task.{device}"


def up_subject(device: str, *rest: str) -> str:
    """Return a subject that a device publishes on."""
    return ".".join((f"{PREFIX}.up", device, *rest))


def server_config(
    folder: Path, *, name: str, listen: str, port: int, coordinator: str, devices: Mapping[str, str]
) -> str:
    """Return the text of the server's configuration file.

    Args:
        folder: The fleet's folder, with the server's keys.
        name: Of the server.
        listen: Address that it listens on.
        port: Port that it listens on.
        coordinator: Subject of the coordinator's certificate.
        devices: Subject of the certificate by device name. Only these devices can connect.
    """
    folder = folder.resolve()
    users = [_user(coordinator, subscribe=[up_subject("*", ">"), GONE], publish=[task_subject("*"), WHO])]
    users += [
        _user(
            subject,
            subscribe=[task_subject(device), WHO],
            publish=[up_subject(device, "here"), up_subject(device, "answer", "*")],
        )
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
        "max_pending": 128 * 2**20,  # the largest message, in chunks, may wait for a slow device
        "write_deadline": "30s",
        "ping_interval": "2s",
        "ping_max": 2,
        "tls": {
            "cert_file": str(folder / "server.pem"),
            "key_file": str(folder / "server.key"),
            "ca_file": str(folder / "authority.pem"),
            "verify_and_map": True,
            # Otherwise the server sends plain text first, and a man in the middle can make the client skip TLS.
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


def _user(subject: str, *, subscribe: list[str], publish: list[str]) -> dict[str, Any]:
    return {"user": subject, "permissions": {"subscribe": subscribe, "publish": publish}}
