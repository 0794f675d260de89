"""Certificates are valid for their side, their names and their time, and for nothing else."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from taskedge.cooperation.fleet.certificates import create_authority, create_client_identity, create_server_identity
from taskedge.errors import InputError


@pytest.fixture(scope="module")
def authority():
    return create_authority("plant-7")


def certificate(identity):
    return x509.load_pem_x509_certificate(identity.certificate)


def usages(identity):
    return list(certificate(identity).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_the_server_is_valid_for_its_names_and_loopback_only(authority):
    server = create_server_identity(authority, ["plant.example", "10.1.2.3", "127.0.0.1"])
    names = certificate(server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "plant.example"}
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1", "10.1.2.3"}
    assert usages(server) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_device_is_valid_as_a_client_only(authority):
    device = create_client_identity(authority, "edge0")
    assert usages(device) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate(device).extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):  # the server would take these names for the device's identity
        certificate(device).extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_the_authority_signs_identities_and_no_further_authorities(authority):
    device, root = certificate(create_client_identity(authority, "edge0")), certificate(authority)
    root.public_key().verify(device.signature, device.tbs_certificate_bytes, ECDSA(SHA256()))
    assert device.issuer == root.subject
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


def test_the_subject_is_in_the_servers_notation_and_never_the_same_twice(authority):
    first, second = (create_client_identity(authority, "edge0") for _ in range(2))
    assert first.subject.startswith("CN=edge0,OU=")
    assert first.subject != second.subject
    assert certificate(first).serial_number == int(first.subject.partition("OU=")[2], 16)


def test_validity(authority):
    now = datetime.now(UTC)
    device = create_client_identity(authority, "edge0")
    dates = certificate(device)
    assert dates.not_valid_before_utc <= now - timedelta(hours=23)  # a device's clock may be behind
    assert timedelta(days=729) < dates.not_valid_after_utc - now <= timedelta(days=730)
    assert device.expires == dates.not_valid_after_utc.isoformat()
    assert certificate(authority).not_valid_after_utc - now > timedelta(days=3649)


def test_a_host_that_is_neither_name_nor_address_is_refused(authority):
    with pytest.raises(InputError, match="neither a host name nor an address"):
        create_server_identity(authority, ["münchen"])


@pytest.mark.parametrize("create", [create_client_identity, create_server_identity])
def test_without_the_package_the_extra_is_named(authority, monkeypatch, create):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(InputError, match=r"pip install 'taskedge\[fleet\]'"):
        create_authority("plant")
    with pytest.raises(InputError, match=r"pip install 'taskedge\[fleet\]'"):
        create(authority, "edge0")
