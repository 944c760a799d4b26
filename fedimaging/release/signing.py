"""The releaser's Ed25519 key: who holds it signs the manifest, and whoever has its public half can tell."""

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fedimaging.errors import ReleaseError
from fedimaging.files import write_text
from fedimaging.keys import fingerprint, write_private


def make_signing_key(path: Path) -> str:
    """Make a key: the private half in `path` (for this user only), the public half in PATH.pub, which is returned (PEM).

    Error: ReleaseError where either file is there already; RunError.
    """
    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists():
            raise ReleaseError(f"{str(file)!r} exists already; a key is never overwritten: choose another name.")
    key = Ed25519PrivateKey.generate()
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text = public_text(key.public_key())
    write_text(public, text)
    return text


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file. Error: ReleaseError."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = getattr(error, "strerror", None) or "no private key in PEM without a password"
        raise ReleaseError(f"the key {str(path)!r} cannot be read: {why}; make one with `fedimaging release-key FILE`.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ReleaseError(f"the key {str(path)!r} is no Ed25519 key; make one with `fedimaging release-key FILE`.")
    return key


def public_text(key: Ed25519PublicKey) -> str:
    """The public half in PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def read_verifying_key(text: str, where: str) -> Ed25519PublicKey:
    """The public key in a PEM text. Error: ReleaseError."""
    try:
        key = load_pem_public_key(text.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm):
        raise ReleaseError(f"{where} holds no public key in PEM.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ReleaseError(f"{where} holds no Ed25519 key.")
    return key


def read_key_text(path: Path) -> str:
    """The text of a public key's file. Error: ReleaseError."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ReleaseError(f"the public key {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def is_signed(key: Ed25519PublicKey, signature_hex: str, content: bytes) -> bool:
    """True where the signature (hex) over `content` was made with the private half of `key`."""
    try:
        key.verify(bytes.fromhex(signature_hex.strip()), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def key_fingerprint(key: Ed25519PublicKey) -> str:
    """What two people compare (`keys.fingerprint`)."""
    return fingerprint(public_text(key))
