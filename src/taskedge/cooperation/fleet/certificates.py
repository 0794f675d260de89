"""Certificates of a fleet: its own authority, and an identity for the server, the coordinator and each device.

Keys are on the curve P-256. A certificate is valid for one side only (server or client), so a device cannot pose as the
server. The subject contains a serial number: a device that is enrolled again has a new subject, and the server refuses
its old key although the name is the same.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from taskedge.errors import InputError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 3650
LEAF_DAYS = 730
_CLOCK_SKEW = timedelta(days=1)
"""How far a device's clock may be behind when it first checks a certificate."""


@dataclass(frozen=True)
class Identity:
    """A private key and its certificate, as PEM."""

    key: bytes
    certificate: bytes
    subject: str
    """In the server's notation: ``CN=jetson-1,OU=<serial>``."""
    expires: str
    """End of validity, UTC, ISO 8601."""


def create_authority(fleet: str, days: int = AUTHORITY_DAYS) -> Identity:
    """Create an authority, which signs the identities of one fleet and no further authorities."""
    _require_cryptography()
    from cryptography import x509

    name = _name(f"{fleet} authority")
    key = _key()
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(name, key, days, x509.random_serial_number())
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _signed(builder, key, key)


def create_server_identity(authority: Identity, hosts: Sequence[str], days: int = LEAF_DAYS) -> Identity:
    """Create the identity of a server, valid for ``hosts`` (names or addresses) and for loopback.

    Raises:
        InputError: A host is neither a name nor an address.
    """
    _require_cryptography()
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(["localhost", "127.0.0.1", "::1", *hosts]):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            try:
                names.append(x509.DNSName(host))
            except ValueError:
                raise InputError(f"{host!r} is neither a host name nor an address") from None
    alternative = x509.SubjectAlternativeName(names)
    return _leaf(authority, "server", ExtendedKeyUsageOID.SERVER_AUTH, days, alternative)


def create_client_identity(authority: Identity, name: str, days: int = LEAF_DAYS) -> Identity:
    """Create the identity of the coordinator or a device."""
    _require_cryptography()
    from cryptography.x509.oid import ExtendedKeyUsageOID

    return _leaf(authority, name, ExtendedKeyUsageOID.CLIENT_AUTH, days)


def _leaf(
    authority: Identity,
    name: str,
    usage: x509.ObjectIdentifier,
    days: int,
    alternative: x509.SubjectAlternativeName | None = None,
) -> Identity:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    signer = x509.load_pem_x509_certificate(authority.certificate)
    signing = load_pem_private_key(authority.key, password=None)
    serial = x509.random_serial_number()
    key = _key()
    builder = (
        _builder(_name(name, serial), key, days, serial)
        .issuer_name(signer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    if alternative is not None:
        builder = builder.add_extension(alternative, critical=False)
    return _signed(builder, key, signing)  # type: ignore[arg-type]


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise InputError(
            "making certificates needs the package 'cryptography': pip install 'taskedge[fleet]'"
        ) from None


def _key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _name(common: str, serial: int | None = None) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if serial is not None:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"{serial:040x}"))
    return x509.Name(parts)


def _builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, serial: int) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signing: ec.EllipticCurvePrivateKey
) -> Identity:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    certificate = builder.sign(signing, hashes.SHA256())
    return Identity(
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate=certificate.public_bytes(Encoding.PEM),
        subject=",".join(reversed(certificate.subject.rfc4514_string().split(","))),  # the names hold no commas
        expires=certificate.not_valid_after_utc.isoformat(timespec="seconds"),
    )
