"""The federation's own certificate authority, made on the operator's machine: hospitals trust it and nobody else's."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedimaging.errors import RunError, bad_value
from fedimaging.files import write_whole
from fedimaging.keys import write_private

AUTHORITY_YEARS, SERVER_YEARS = 15, 3
_EARLY = timedelta(hours=1)  # a hospital's clock may be behind


def make_authority(certificate: Path, key: Path) -> None:
    """Make an authority: its certificate (to be given to every hospital) and its key. Error: RunError."""
    private = generate_private_key(SECP384R1())
    name = _name("fedimaging authority")
    built = _begin(name, name, private, AUTHORITY_YEARS).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    built = built.add_extension(_usage(sign=True), True)
    signed = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), False)
    _write(certificate, key, signed.sign(private, SHA384()), private)


def issue(host: str, authority: Path, authority_key: Path, certificate: Path, key: Path) -> None:
    """Make the server's key and certificate for this host name or address, signed by the authority. Error: RunError."""
    name = _host(host)
    try:
        parent = x509.load_pem_x509_certificate(authority.read_bytes())
        signer = load_pem_private_key(authority_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        text = f"the authority in {str(authority.parent)!r} cannot be read: {error}; restore ca.crt and ca.key."
        raise RunError(text) from None
    if not isinstance(signer, EllipticCurvePrivateKey):
        raise RunError(f"{str(authority_key)!r} is no EC key; restore the one made by `fedimaging server init`.")
    private = generate_private_key(SECP384R1())
    built = _begin(_name(host[:64]), parent.subject, private, SERVER_YEARS)
    built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), True).add_extension(_usage(sign=False), True)
    built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    built = built.add_extension(x509.SubjectAlternativeName([name]), False)
    signed = built.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
    _write(certificate, key, signed.sign(signer, SHA384()), private)


def days_left(certificate: Path) -> int:
    """Whole days for which a certificate is still valid. Error: RunError."""
    try:
        ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise RunError(f"certificate {str(certificate)!r} cannot be read: {error}.") from None
    return (ends - datetime.now(UTC)).days


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host or not host.isascii() or any(not (c.isalnum() or c in "-.") for c in host):
        rule = "is neither a DNS name nor an IP address"
        raise RunError(bad_value("--host", host, rule, "give the name under which hospitals reach the server"))
    return x509.DNSName(host)


def _begin(
    subject: x509.Name, issuer: x509.Name, private: EllipticCurvePrivateKey, years: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(private.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - _EARLY)
        .not_valid_after(now + timedelta(days=365 * years))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign, key_cert_sign=sign, crl_sign=sign, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )


def _write(certificate: Path, key: Path, signed: x509.Certificate, private: EllipticCurvePrivateKey) -> None:
    write_private(key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_whole(certificate, lambda path: path.write_bytes(signed.public_bytes(Encoding.PEM)))
