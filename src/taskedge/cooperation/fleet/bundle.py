"""The folder that lets its holder take part in a fleet: copy it to the device, and that is all.

``key.pem`` (0600), ``certificate.pem``, ``authority.pem`` and ``fleet.json`` with the server's address and the name.
"""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from pathlib import Path

from taskedge.cooperation.fleet.certificates import Identity
from taskedge.errors import InputError
from taskedge.io.atomic import write_aside

_FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """Who one is in a fleet, and where its server is."""

    folder: Path
    fleet: str
    name: str
    """The device's, or ``coordinator``."""
    server: str
    """``tls://host:port``."""

    @classmethod
    def write(cls, folder: Path, *, fleet: str, name: str, server: str, identity: Identity, ca: bytes) -> Bundle:
        """Writes the folder (0700), which must not exist; the files in it are whole when it has its name."""
        aside = folder.with_name(f".{folder.name}.aside")
        aside.mkdir(mode=0o700, exist_ok=True)
        facts = {"format": _FORMAT, "fleet": fleet, "name": name, "server": server}
        write_aside(aside / "key.pem", identity.key, private=True)
        write_aside(aside / "certificate.pem", identity.certificate)
        write_aside(aside / "authority.pem", ca)
        write_aside(aside / "fleet.json", (json.dumps(facts, indent=1) + "\n").encode())
        aside.rename(folder)
        return cls(folder, fleet, name, server)

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Reads a folder.

        Raises:
            InputError: it is no bundle, a file is missing, or others can read its key.
        """
        path = folder / "fleet.json"
        try:
            facts = json.loads(path.read_bytes())
            bundle = cls(folder, str(facts["fleet"]), str(facts["name"]), str(facts["server"]))
            known = facts["format"] == _FORMAT
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}): name the folder that `taskedge cooperate enrol` made"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: is no fleet.json of a bundle: copy the folder again") from None
        if not known:
            raise InputError(f"{path}: format {facts['format']!r}, this version reads {_FORMAT}: update taskedge")
        for name in ("key.pem", "certificate.pem", "authority.pem"):
            if not (folder / name).is_file():
                raise InputError(f"{folder / name}: is missing: copy the whole folder")
        if (folder / "key.pem").stat().st_mode & 0o077:
            raise InputError(f"{folder / 'key.pem'}: others can read this key: chmod 600 {folder / 'key.pem'}")
        return bundle

    def tls(self) -> ssl.SSLContext:
        """How to connect: as this bundle's name, and only to a server that the fleet's authority signed.

        Raises:
            InputError: key and certificate are damaged or do not belong together.
        """
        try:
            context = ssl.create_default_context(cafile=str(self.folder / "authority.pem"))
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(self.folder / "certificate.pem", self.folder / "key.pem")
        except (ssl.SSLError, OSError) as error:
            raise InputError(f"{self.folder}: its key or certificates cannot be used ({error}): enrol again") from None
        return context
