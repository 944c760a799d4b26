"""Keys are made once, read only where they are Ed25519, and never shown to others."""

from pathlib import Path

import pytest

from fedimaging.errors import ReleaseError
from fedimaging.keys import make_key
from fedimaging.release.signing import (
    is_signed,
    key_fingerprint,
    make_signing_key,
    read_key_text,
    read_signing_key,
    read_verifying_key,
)


def test_a_key_signs_and_its_public_half_tells(tmp_path: Path) -> None:
    public = make_signing_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert read_key_text(tmp_path / "key.pub") == public
    key, verifying = read_signing_key(tmp_path / "key"), read_verifying_key(public, "here")
    signature = key.sign(b"content").hex()
    assert is_signed(verifying, signature, b"content")
    assert not is_signed(verifying, signature, b"Content")
    assert not is_signed(verifying, "nonsense", b"content")
    assert key_fingerprint(verifying) == key_fingerprint(key.public_key())
    assert len(key_fingerprint(verifying)) == 32 + 7


def test_a_key_is_never_overwritten_and_other_keys_are_refused(tmp_path: Path) -> None:
    make_signing_key(tmp_path / "key")
    with pytest.raises(ReleaseError, match="exists already"):
        make_signing_key(tmp_path / "key")
    make_key(tmp_path / "node.key", tmp_path / "node.pub")
    with pytest.raises(ReleaseError, match="no Ed25519 key"):
        read_signing_key(tmp_path / "node.key")
    with pytest.raises(ReleaseError, match="release-key"):
        read_signing_key(tmp_path / "nothing")
    with pytest.raises(ReleaseError, match="no private key"):
        read_signing_key(tmp_path / "key.pub")
    with pytest.raises(ReleaseError, match="no Ed25519 key"):
        read_verifying_key(read_key_text(tmp_path / "node.pub"), "node.pub")
    with pytest.raises(ReleaseError, match="cannot be read"):
        read_key_text(tmp_path / "nothing")
