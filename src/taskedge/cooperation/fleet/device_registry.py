"""Who belongs to a fleet: a folder with its authority, the server's keys, and a bundle for each who may connect.

plant-7/                 0700
  fleet.json             name, address, who is enrolled, who was revoked
  authority.{key,pem}    signs identities; the key never leaves this folder
  server.{key,pem,conf}  what the server reads; rewritten at every enrol and revoke
  coordinator/           its bundle
  devices/jetson-1/      a device's bundle: copy it there, then delete it here
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from taskedge.cooperation.fleet import certificates
from taskedge.cooperation.fleet.bundle import Bundle
from taskedge.cooperation.fleet.certificates import Identity
from taskedge.cooperation.transport.nats.server import NatsServer
from taskedge.cooperation.transport.nats.server_config import server_config
from taskedge.errors import InputError, UnknownName
from taskedge.io.atomic import write_aside

COORDINATOR = "coordinator"
PORT = 4222
_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass
class Enrolled:
    """One who may connect."""

    subject: str
    """Of the certificate; no two ever share one."""
    expires: str
    enrolled: str


@dataclass
class Fleet:
    """A fleet's folder. Every change is written before the method returns, and told to the server where it runs."""

    folder: Path
    name: str
    listen: str
    port: int
    hosts: list[str]
    coordinator: Enrolled
    devices: dict[str, Enrolled] = field(default_factory=dict)
    revoked: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def create(
        cls, folder: Path, *, name: str = "", hosts: Sequence[str] = (), listen: str = "127.0.0.1", port: int = PORT
    ) -> Fleet:
        """Makes a new fleet.

        Args:
            name: the folder's, where none is given.
            hosts: names or addresses that devices reach this machine by; the first goes into their bundles.
            listen: the address the server accepts connections on; loopback unless asked.

        Raises:
            InputError: the folder exists, or a name cannot be used.
        """
        name = _checked(name or folder.resolve().name)
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty: name a new folder for the fleet's keys")
        ca = certificates.authority(name)
        server = certificates.server(ca, [*hosts, _local(listen)])
        coordinator = certificates.client(ca, COORDINATOR)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / "devices").mkdir(mode=0o700)
        for who, identity in (("authority", ca), ("server", server)):
            write_aside(folder / f"{who}.key", identity.key, private=True)
            write_aside(folder / f"{who}.pem", identity.certificate)
        fleet = cls(folder, name, listen, port, list(hosts), _enrolled(coordinator))
        fleet._bundle(folder / COORDINATOR, COORDINATOR, coordinator, _address(_local(listen), port))
        fleet._save()
        return fleet

    @classmethod
    def open(cls, folder: Path) -> Fleet:
        """Reads a fleet's folder.

        Raises:
            InputError: it is none.
        """
        path = folder / "fleet.json"
        try:
            stored = json.loads(path.read_bytes())
            if stored.pop("format") != _FORMAT:
                raise InputError(f"{path}: another format than this version's ({_FORMAT}): update taskedge")
            devices = {name: Enrolled(**facts) for name, facts in stored.pop("devices").items()}
            return cls(folder, coordinator=Enrolled(**stored.pop("coordinator")), devices=devices, **stored)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}): `taskedge cooperate init` makes a fleet"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: is not the fleet.json of a fleet ({error})") from None

    @property
    def server(self) -> NatsServer:
        """Its server, running or not."""
        return NatsServer(self.folder)

    @property
    def coordinator_bundle(self) -> Path:
        """The coordinator's bundle."""
        return self.folder / COORDINATOR

    def enrol(self, device: str) -> Path:
        """Lets a device connect from now on; returns its bundle, ready to copy.

        Raises:
            InputError: the name cannot be used, or is enrolled already.
        """
        _checked(device)
        with self._changing():
            if device in self.devices:
                raise InputError(
                    f"{device!r} is enrolled already: its bundle is {self.folder / 'devices' / device}; "
                    f"to give it a new key, revoke it first"
                )
            identity = certificates.client(self._authority(), device)
            folder = self.folder / "devices" / device
            if folder.exists():  # from an enrolment that did not come to its end
                shutil.rmtree(folder)
            host = self.hosts[0] if self.hosts else _local(self.listen)
            self._bundle(folder, device, identity, _address(host, self.port))
            self.devices[device] = _enrolled(identity)
        return folder

    def revoke(self, device: str) -> None:
        """Cuts a device off, now and for good: its key opens nothing even when the name is enrolled anew.

        Raises:
            UnknownName: it is not enrolled.
            ServerError: the server runs, and could not be told.
        """
        with self._changing():
            if device not in self.devices:
                raise UnknownName("device", device, self.devices)
            entry = self.devices.pop(device)
            self.revoked.append({"name": device, "subject": entry.subject, "revoked": _now()})
        shutil.rmtree(self.folder / "devices" / device, ignore_errors=True)

    def renew(self) -> None:
        """New keys for the server and the coordinator, whose old ones are worth nothing then; devices keep theirs.

        Raises:
            ServerError: the server runs, and could not be told.
        """
        with self._changing():
            ca = self._authority()
            server = certificates.server(ca, [*self.hosts, _local(self.listen)])
            coordinator = certificates.client(ca, COORDINATOR)
            write_aside(self.folder / "server.key", server.key, private=True)
            write_aside(self.folder / "server.pem", server.certificate)
            shutil.rmtree(self.coordinator_bundle)
            address = _address(_local(self.listen), self.port)
            self._bundle(self.coordinator_bundle, COORDINATOR, coordinator, address)
            self.coordinator = _enrolled(coordinator)

    def start_server(self) -> NatsServer:
        """The server, running: started now, or found running."""
        self._write_config()  # the folder may have been moved
        server = self.server
        server.start()
        return server

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, on what is on the disk now; saved, and told to the server, at the end."""
        import fcntl

        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            now = Fleet.open(self.folder)
            self.devices, self.revoked, self.coordinator = now.devices, now.revoked, now.coordinator
            yield
            self._save()
            self.server.reload()

    def _save(self) -> None:
        stored = {key: value for key, value in asdict(self).items() if key != "folder"}
        content = json.dumps({"format": _FORMAT} | stored, indent=1) + "\n"
        write_aside(self.folder / "fleet.json", content.encode(), private=True)
        self._write_config()

    def _write_config(self) -> None:
        config = server_config(
            self.folder,
            name=self.name,
            listen=self.listen,
            port=self.port,
            coordinator=self.coordinator.subject,
            devices={name: entry.subject for name, entry in self.devices.items()},
        )
        write_aside(self.folder / "server.conf", config.encode(), private=True)

    def _bundle(self, folder: Path, name: str, identity: Identity, address: str) -> None:
        ca = (self.folder / "authority.pem").read_bytes()
        Bundle.write(folder, fleet=self.name, name=name, server=address, identity=identity, ca=ca)

    def _authority(self) -> Identity:
        key, certificate = (self.folder / f"authority.{end}" for end in ("key", "pem"))
        try:
            return Identity(key.read_bytes(), certificate.read_bytes(), "", "")
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be read ({error.strerror}): the fleet's authority is needed"
            ) from None


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name == COORDINATOR:
        raise InputError(
            f"{name!r} cannot be a name here: up to 63 letters, digits, '-' and '_', not {COORDINATOR!r} "
            f"(it becomes part of certificates and of the server's subjects)"
        )
    return name


def _enrolled(identity: Identity) -> Enrolled:
    return Enrolled(identity.subject, identity.expires, _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _address(host: str, port: int) -> str:
    return f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}"


def _local(listen: str) -> str:
    """Where this machine reaches a server that listens there."""
    return {"0.0.0.0": "127.0.0.1", "::": "localhost"}.get(listen, listen)
