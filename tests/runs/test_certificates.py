import socket
import ssl
import threading
from pathlib import Path

import pytest

from fedimaging.errors import RunError
from fedimaging.runs.certificates import SERVER_YEARS, days_left, issue, make_authority


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca")
    for name in ("ours", "theirs"):
        make_authority(folder / f"{name}.crt", folder / f"{name}.key")
    return folder


def handshake(folder: Path, host: str, shown: str, trusted: str) -> str:
    """A TLS handshake over a socket pair: what the client says of the server's certificate."""
    issue(shown, folder / "ours.crt", folder / "ours.key", folder / "server.crt", folder / "server.key")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(folder / f"{trusted}.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(here, server_hostname=host):
            return "trusted"
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        here.close()
        thread.join(10)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "federation.example.org"])
def test_a_hospital_that_has_the_authoritys_certificate_trusts_the_server_by_its_name(host: str, made: Path) -> None:
    assert handshake(made, host, host, "ours") == "trusted"
    assert days_left(made / "server.crt") == 365 * SERVER_YEARS - 1


def test_another_name_and_another_authority_are_not_trusted(made: Path) -> None:
    assert "mismatch" in handshake(made, "elsewhere.example.org", "federation.example.org", "ours")
    assert "unable to get local issuer" in handshake(made, "127.0.0.1", "127.0.0.1", "theirs")


@pytest.mark.parametrize("host", ["", "a b", "http://x", "ümlaut.example"])
def test_a_host_that_is_no_name_is_refused(host: str, made: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="neither a DNS name"):
        issue(host, made / "ours.crt", made / "ours.key", tmp_path / "s.crt", tmp_path / "s.key")


def test_an_authority_that_is_gone_is_said(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"restore ca\.crt"):
        issue("x", made / "none.crt", made / "ours.key", tmp_path / "s.crt", tmp_path / "s.key")
    with pytest.raises(RunError, match="cannot be read"):
        days_left(made / "none.crt")
