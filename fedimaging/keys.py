"""A hospital's key: made once, kept at the hospital; its public half names the hospital to the server.

A key is EC on P-384, in PEM files. Hospital and operator compare its fingerprint by another way than the network, for
example by phone, before the operator admits it: then nobody between them can have swapped it.
"""

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_public_key,
)

from fedimaging.errors import RunError
from fedimaging.files import write_text, write_whole

_CURVES = (SECP256R1, SECP384R1, SECP521R1)
_FINGERPRINT_BYTES = 16  # 128 bits: nobody can make another key with the same, and it can be read out on the phone


def make_key(private: Path, public: Path) -> str:
    """Make a key in two files (the private one for this user only); returns the public half. Error: RunError."""
    key = generate_private_key(SECP384R1())
    write_private(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text = public_text(key)
    write_text(public, text)
    return text


def write_private(path: Path, content: bytes) -> None:
    """Write a secret, by rename, so that no other user can read it at any moment. Error: RunError."""

    def write(temporary: Path) -> None:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write)


def public_text(key: EllipticCurvePrivateKey) -> str:
    """The public half in PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def read_private(path: Path) -> EllipticCurvePrivateKey:
    """The key in a file. Error: RunError."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RunError(f"the hospital's key {str(path)!r} cannot be read: {error}; restore it, or make a new one.") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise RunError(f"the hospital's key {str(path)!r} is no EC key; make one with `fedimaging site init`.")
    return key


def read_public(path: Path) -> str:
    """The public half in a file (PEM or OpenSSH), as PEM. Error: RunError for a private key or anything else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"the public key {str(path)!r} cannot be read: {error.strerror}.") from None
    if b"PRIVATE KEY" in content:
        raise RunError(f"{str(path)!r} is a private key, which must never leave its hospital; ask for node.pub instead.")
    try:
        key = load_ssh_public_key(content) if content.startswith(b"ecdsa-") else load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RunError(f"{str(path)!r} holds no public key: {error}; ask the hospital for node.pub.") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise RunError(f"{str(path)!r} holds no EC key on P-256, P-384 or P-521; `fedimaging site init` makes one.")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def fingerprint(public: str) -> str:
    """What two people compare: 32 digits of the SHA-256 of a public key (PEM), in groups of four."""
    key = load_pem_public_key(public.encode("ascii"))
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    digits = digest[:_FINGERPRINT_BYTES].hex()
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))
