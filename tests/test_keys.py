import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedimaging.errors import RunError
from fedimaging.keys import fingerprint, make_key, public_text, read_private, read_public

PUBLIC = """-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEqMeUkDl4nKXE8meCSmTmMbgU+zIHXAYW
fSMisV8lLos2mP4wfHoDaFqwi16LxhP6ck8YKJ7tUaCg+4PS+3hNFhKBEdU4v0nS
O9+j/H86w9VUSEOIJi13nCj0W2AvHYJ6
-----END PUBLIC KEY-----
"""


def test_a_key_is_two_files_and_the_private_one_is_this_users_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        text = make_key(tmp_path / "node.key", tmp_path / "node.pub")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600
    key = read_private(tmp_path / "node.key")
    assert isinstance(key.curve, ec.SECP384R1)
    assert public_text(key) == text == read_public(tmp_path / "node.pub")


def test_the_fingerprint_is_the_same_on_both_ends_and_short_enough_for_the_phone(tmp_path: Path) -> None:
    assert fingerprint(PUBLIC) == fingerprint(PUBLIC.replace("\n", "\r\n")) == FINGERPRINT
    assert fingerprint(make_key(tmp_path / "a", tmp_path / "b")) != FINGERPRINT


FINGERPRINT = "d70f dfd6 58dd eca5 5b80 8d53 b1d7 97a0"


def test_an_openssh_key_is_the_same_key(tmp_path: Path) -> None:
    make_key(tmp_path / "node.key", tmp_path / "node.pub")
    key = read_private(tmp_path / "node.key")
    (tmp_path / "ssh.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" me@here")
    assert read_public(tmp_path / "ssh.pub") == public_text(key)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no public key"),
        (b"hello", "holds no public key"),
        (ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "no EC"),
        (ec.generate_private_key(ec.BrainpoolP256R1()).public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "P-384"),
        (b"-----BEGIN PRIVATE KEY-----\nx", "must never leave its hospital"),
    ],
)
def test_what_is_no_public_key_is_refused_with_a_remedy(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "node.pub").write_bytes(content)
    with pytest.raises(RunError, match=words):
        read_public(tmp_path / "node.pub")


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nx"])
def test_a_private_key_that_cannot_be_read_is_said(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "node.key").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read"):
        read_private(tmp_path / "node.key")
