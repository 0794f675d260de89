"""The folder that lets its holder take part in a fleet. Copying it to the device is all that a device needs.

``key.pem`` (0600), ``certificate.pem``, ``authority.pem`` and ``fleet.json`` with the server's address and the name.
The coordinator's bundle has ``devices.json`` as well, the names of the devices that it listens to.
"""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from pathlib import Path

from taskedge.errors import InputError
from taskedge.io.atomic import atomic_folder, write_atomic

_FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """An identity in a fleet, and the address of the fleet's server."""

    folder: Path
    fleet: str
    name: str
    """The device's, or ``coordinator``."""
    server: str
    """``tls://host:port``."""

    @classmethod
    def write(
        cls, folder: Path, *, fleet: str, name: str, server: str, key: bytes, certificate: bytes, authority: bytes
    ) -> Bundle:
        """Write the folder (0700) atomically; an existing one is replaced. Keys and certificates are PEM."""
        fields = {"format": _FORMAT, "fleet": fleet, "name": name, "server": server}
        with atomic_folder(folder, private=True) as tmp:
            write_atomic(tmp / "key.pem", key, private=True)
            write_atomic(tmp / "certificate.pem", certificate)
            write_atomic(tmp / "authority.pem", authority)
            write_atomic(tmp / "fleet.json", (json.dumps(fields, indent=1) + "\n").encode())
        return cls(folder, fleet, name, server)

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read a folder.

        Raises:
            InputError: It is no bundle, a file is missing, or other users can read its key.
        """
        path = folder / "fleet.json"
        try:
            fields = json.loads(path.read_bytes())
            bundle = cls(folder, str(fields["fleet"]), str(fields["name"]), str(fields["server"]))
            is_known_format = fields["format"] == _FORMAT
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}): name the folder that `taskedge cooperate enrol` made"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: is no fleet.json of a bundle: copy the folder again") from None
        if not is_known_format:
            raise InputError(f"{path}: format {fields['format']!r}, this version reads {_FORMAT}: update taskedge")
        for name in ("key.pem", "certificate.pem", "authority.pem"):
            if not (folder / name).is_file():
                raise InputError(f"{folder / name}: is missing: copy the whole folder")
        if (folder / "key.pem").stat().st_mode & 0o077:
            raise InputError(f"{folder / 'key.pem'}: others can read this key: chmod 600 {folder / 'key.pem'}")
        return bundle

    @property
    def devices_file(self) -> Path:
        """In the coordinator's bundle: the file with the names of the enrolled devices."""
        return self.folder / "devices.json"

    def devices(self) -> tuple[str, ...]:
        """Return the names of the enrolled devices. Only the coordinator's bundle has them.

        Raises:
            InputError: The file is missing or damaged.
        """
        try:
            return tuple(map(str, json.loads(self.devices_file.read_bytes())["devices"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.devices_file}: cannot be read ({error}): `taskedge cooperate serve` writes it"
            ) from None

    def tls(self) -> ssl.SSLContext:
        """Return TLS settings to connect under this name, and only to a server that the fleet's authority signed.

        Raises:
            InputError: Key and certificate are damaged or do not belong together.
        """
        try:
            context = ssl.create_default_context(cafile=str(self.folder / "authority.pem"))
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(self.folder / "certificate.pem", self.folder / "key.pem")
        except (ssl.SSLError, OSError) as error:
            raise InputError(f"{self.folder}: its key or certificates cannot be used ({error}): enrol again") from None
        return context
