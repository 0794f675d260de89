"""The devices of a fleet: a folder with its authority, the server's keys, and a bundle of keys per device.

plant-7/                 0700
  fleet.json             name, address, enrolled and revoked devices
  authority.{key,pem}    signs identities; the key never leaves this folder
  server.{key,pem,conf}  read by the server; rewritten when a device is enrolled or revoked
  coordinator/           bundle of the coordinator
  devices/jetson-1/      bundle of a device: copy it to the device, then delete it here
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

from filelock import FileLock

from taskedge.cooperation.fleet import certificates
from taskedge.cooperation.fleet.certificates import Identity
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.cooperation.transport.nats.server import NatsServer
from taskedge.cooperation.transport.nats.server_config import server_config
from taskedge.errors import InputError, UnknownName
from taskedge.io.atomic import write_atomic
from taskedge.planning.fleet_spec import DEVICE_NAME

COORDINATOR = "coordinator"
PORT = 4222
_FORMAT = 1


@dataclass
class Enrollment:
    """A device, or the coordinator, that may connect."""

    subject: str
    """Subject of its certificate. No two certificates share one."""
    expires: str
    """End of the certificate's validity, UTC, ISO 8601."""
    enrolled: str
    """Time of the enrollment, UTC, ISO 8601."""


@dataclass
class DeviceRegistry:
    """The folder of a fleet. Every change is on disk, and known to a running server, when the method returns.

    Attributes:
        folder: The folder.
        name: Name of the fleet.
        listen: Address that the server accepts connections on.
        port: Port of the server.
        hosts: Names or addresses by which devices reach the server; the first is in their bundles.
        coordinator: The coordinator.
        devices: Devices that may connect, by name.
        revoked: Name, subject and time of each revoked device.
    """

    folder: Path
    name: str
    listen: str
    port: int
    hosts: list[str]
    coordinator: Enrollment
    devices: dict[str, Enrollment] = field(default_factory=dict)
    revoked: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def create(
        cls, folder: Path, *, name: str = "", hosts: Sequence[str] = (), listen: str = "127.0.0.1", port: int = PORT
    ) -> DeviceRegistry:
        """Create a fleet.

        Args:
            folder: A folder that is empty or does not exist.
            name: Name of the fleet; the default is the folder's name.
            hosts: Names or addresses by which devices reach this machine; the first is written into their bundles.
            listen: Address that the server accepts connections on. The default accepts only this machine's.
            port: Port of the server.

        Raises:
            InputError: The folder is not empty, or a name cannot be used.
        """
        name = check_name(name or folder.resolve().name)
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty: name a new folder for the fleet's keys")
        authority = certificates.create_authority(name)
        server = certificates.create_server_identity(authority, [*hosts, _local_host(listen)])
        coordinator = certificates.create_client_identity(authority, COORDINATOR)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / "devices").mkdir(mode=0o700)
        for stem, identity in (("authority", authority), ("server", server)):
            write_atomic(folder / f"{stem}.key", identity.key, private=True)
            write_atomic(folder / f"{stem}.pem", identity.certificate)
        registry = cls(folder, name, listen, port, list(hosts), _enrollment(coordinator))
        registry._write_bundle(registry.coordinator_bundle, COORDINATOR, coordinator, _local_host(listen))
        registry._save()
        return registry

    @classmethod
    def open(cls, folder: Path) -> DeviceRegistry:
        """Open the folder of a fleet.

        Raises:
            InputError: The folder is not the folder of a fleet.
        """
        path = folder / "fleet.json"
        try:
            stored = json.loads(path.read_bytes())
            if stored.pop("format") != _FORMAT:
                raise InputError(f"{path}: another format than this version's ({_FORMAT}): update taskedge")
            devices = {name: Enrollment(**fields) for name, fields in stored.pop("devices").items()}
            coordinator = Enrollment(**stored.pop("coordinator"))
            return cls(folder, coordinator=coordinator, devices=devices, **stored)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}): `taskedge cooperate init` makes a fleet"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: is not the fleet.json of a fleet ({error})") from None

    @property
    def server(self) -> NatsServer:
        """The server of the fleet, running or not."""
        return NatsServer(self.folder)

    @property
    def coordinator_bundle(self) -> Path:
        """The folder with the coordinator's keys."""
        return self.folder / COORDINATOR

    def enroll(self, device: str) -> Path:
        """Allow a device to connect, and return the folder with its keys, ready to copy.

        Raises:
            InputError: The name cannot be used, or is enrolled already.
        """
        check_name(device)
        folder = self.folder / "devices" / device
        with self._change():
            if device in self.devices:
                raise InputError(
                    f"{device!r} is enrolled already: its bundle is {folder}; to give it a new key, revoke it first"
                )
            identity = certificates.create_client_identity(self._authority(), device)
            host = self.hosts[0] if self.hosts else _local_host(self.listen)
            self._write_bundle(folder, device, identity, host)  # replaces one of an interrupted enrollment
            self.devices[device] = _enrollment(identity)
        return folder

    def revoke(self, device: str) -> None:
        """Disconnect a device for good: its key is refused even if the name is enrolled again.

        Raises:
            UnknownName: The device is not enrolled.
            ServerError: The server is running and did not take the change.
        """
        with self._change():
            if device not in self.devices:
                raise UnknownName("device", device, self.devices)
            entry = self.devices.pop(device)
            self.revoked.append({"name": device, "subject": entry.subject, "revoked": _now()})
        shutil.rmtree(self.folder / "devices" / device, ignore_errors=True)

    def renew(self) -> None:
        """Replace the keys of the server and the coordinator, so that the old ones are refused. Devices keep theirs.

        Raises:
            ServerError: The server is running and did not take the change.
        """
        with self._change():
            authority = self._authority()
            server = certificates.create_server_identity(authority, [*self.hosts, _local_host(self.listen)])
            coordinator = certificates.create_client_identity(authority, COORDINATOR)
            write_atomic(self.folder / "server.key", server.key, private=True)
            write_atomic(self.folder / "server.pem", server.certificate)
            self._write_bundle(self.coordinator_bundle, COORDINATOR, coordinator, _local_host(self.listen))
            self.coordinator = _enrollment(coordinator)

    def start_server(self) -> NatsServer:
        """Return the server, after starting it if it is not running."""
        self._write_server_config()  # it has absolute paths, and the folder may have been moved
        server = self.server
        server.start()
        return server

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Lock the folder and reload it for one change. Then save it and make a running server read it."""
        with FileLock(self.folder / ".lock"):
            on_disk = DeviceRegistry.open(self.folder)
            self.devices, self.revoked, self.coordinator = on_disk.devices, on_disk.revoked, on_disk.coordinator
            yield
            self._save()
            self.server.reload()

    def _save(self) -> None:
        stored = {key: value for key, value in asdict(self).items() if key != "folder"}
        content = json.dumps({"format": _FORMAT} | stored, indent=1) + "\n"
        write_atomic(self.folder / "fleet.json", content.encode(), private=True)
        self._write_server_config()

    def _write_server_config(self) -> None:
        config = server_config(
            self.folder,
            name=self.name,
            listen=self.listen,
            port=self.port,
            coordinator=self.coordinator.subject,
            devices={name: entry.subject for name, entry in self.devices.items()},
        )
        write_atomic(self.folder / "server.conf", config.encode(), private=True)
        listened_to = json.dumps({"devices": sorted(self.devices)}) + "\n"
        write_atomic(Bundle.open(self.coordinator_bundle).devices_file, listened_to.encode())

    def _write_bundle(self, folder: Path, name: str, identity: Identity, host: str) -> None:
        folder.parent.mkdir(exist_ok=True)
        Bundle.write(
            folder,
            fleet=self.name,
            name=name,
            server=_server_address(host, self.port),
            key=identity.key,
            certificate=identity.certificate,
            authority=(self.folder / "authority.pem").read_bytes(),
        )

    def _authority(self) -> Identity:
        key, certificate = (self.folder / f"authority.{suffix}" for suffix in ("key", "pem"))
        try:
            return Identity(key.read_bytes(), certificate.read_bytes(), "", "")
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be read ({error.strerror}): the fleet's authority is needed"
            ) from None


def check_name(name: str) -> str:
    """Return the name of a device or a fleet.

    Raises:
        InputError: It cannot be one.
    """
    if not re.fullmatch(DEVICE_NAME, name) or name == COORDINATOR:
        raise InputError(
            f"{name!r} cannot be a name here: up to 63 letters, digits, '-' and '_', not {COORDINATOR!r} "
            f"(it becomes part of certificates and of the server's subjects)"
        )
    return name


def _enrollment(identity: Identity) -> Enrollment:
    return Enrollment(identity.subject, identity.expires, _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _server_address(host: str, port: int) -> str:
    return f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}"


def _local_host(listen: str) -> str:
    """Return where this machine reaches a server that listens on ``listen``."""
    return {"0.0.0.0": "127.0.0.1", "::": "localhost"}.get(listen, listen)
