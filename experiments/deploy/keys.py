"""Keys and certificates of a federation: an authority, the server's certificate, nodes' keys.

Usage: ``python -m experiments.deploy.keys FOLDER --host NAME [--host NAME …] --nodes N``
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedwsa.command_line import Parser, in_one_line
from fedwsa.config.component import ConfigError

_DNS = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_LONGEST = 36_500
"""Days that a certificate may be valid."""

_SKEW = timedelta(minutes=5)  # between the clocks of two machines


@dataclass(frozen=True)
class Authority:
    """Who signs servers' certificates; nodes know it by its own.

    Attributes
    ----------
    key : EllipticCurvePrivateKey
        Stays where it was made.
    certificate : Certificate
        What every node gets.
    """

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, days: float) -> Authority:
        """One of one's own, valid for so many days."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = _name("fedwsa authority")
        draft = _draft(name, name, key, days).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        draft = draft.add_extension(_usage(signs_certificates=True), critical=True)
        return cls(key, draft.sign(key, hashes.SHA384()))

    def issue(
        self, hosts: Sequence[str], days: float
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """A server's key and certificate, for the names and addresses by which nodes call it."""
        names = [_host(host) for host in hosts]
        key = ec.generate_private_key(ec.SECP384R1())
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        draft = (
            _draft(_name(hosts[0]), self.certificate.subject, key, days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(authority, critical=False)
        )
        return key, draft.sign(self.key, hashes.SHA384())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _DNS.fullmatch(host):
            raise ConfigError(f"--host {host!r} is no address and no name of a machine") from None
        return x509.DNSName(host)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _draft(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    start = now - _SKEW if days > 0 else now + timedelta(days=days) - _SKEW  # expired: for tests
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def write_keys(folder: Path, hosts: Sequence[str], nodes: int, days: float = 365.0) -> None:
    """Make ``ca.crt``, ``server.crt``, ``server.key``, and ``node-K``, ``node-K.pub``.

    Private keys are their owner's alone to read. The authority's own key is not kept: who needs
    another certificate makes all anew.

    Raises
    ------
    ConfigError
        If the folder holds any of them already, or cannot be written.
    """
    authority = Authority.new(days)
    key, certificate = authority.issue(hosts, days)
    files = {
        "ca.crt": authority.certificate.public_bytes(Encoding.PEM),
        "server.crt": certificate.public_bytes(Encoding.PEM),
        "server.key": _private(key, PrivateFormat.PKCS8),
    }
    for node in range(nodes):
        own = ec.generate_private_key(ec.SECP384R1())
        files[f"node-{node}"] = _private(own, PrivateFormat.OpenSSH)
        public = own.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        files[f"node-{node}.pub"] = public + b"\n"
    if there := [name for name in files if (folder / name).exists()]:
        raise ConfigError(f"{folder} holds {', '.join(there)} already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            opened = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(opened, "wb") as file:
                file.write(content)
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or folder}: {error.strerror}") from None


def _private(key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def main() -> None:
    """``python -m experiments.deploy.keys``."""
    parser = Parser(
        prog="python -m experiments.deploy.keys",
        description="Make the keys and certificates of a federation.",
    )
    parser.add_argument("folder", type=Path, help="where they go; none of them may be there")
    parser.add_argument(
        "--host",
        action="append",
        required=True,
        help="name or address by which nodes call the server; may be given again",
    )
    parser.add_argument("--nodes", type=int, default=2, help="how many nodes get a key; default: 2")
    parser.add_argument("--days", type=float, default=365.0, help="how long they are valid")
    given = parser.parse_args(sys.argv[1:])
    with in_one_line("keys"):
        if not 0 < given.days <= _LONGEST:
            raise ConfigError(f"--days {given.days:g}: must be above 0, and {_LONGEST} at most")
        if given.nodes < 1:
            raise ConfigError(f"--nodes {given.nodes}: must be above 0")
        write_keys(given.folder, given.host, given.nodes, given.days)
    print(f"the server gets ca.crt, server.crt and server.key of {given.folder}")
    print("node K gets ca.crt and node-K; register it at the server with node-K.pub")


if __name__ == "__main__":
    main()
