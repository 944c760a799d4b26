"""The line between hospital and server, in the hands of whoever has the server's certificate and key.

It passes every call on to the real server and keeps all that the hospital said, byte by byte. Told to, it answers in the
server's place, or shows another certificate. Calls for code, which the real server's public listener does not answer, are
passed to Flower's whole server: at this line a hospital that asked for code would get it.
"""

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CODE_CALLS = ("/v1/fleet/get-fab", "/v1/fleet/get-run")
_HOP = {"connection", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True)
class Call:
    """What one call of a hospital said: path, headers as they came, body."""

    path: str
    headers: bytes
    body: bytes


class OverSocket(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("socket", timeout=30)
        self._path = path

    def connect(self) -> None:
        """See HTTPConnection."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class Line(BaseHTTPRequestHandler):
    """One connection of a hospital."""

    protocol_version = "HTTP/1.1"
    server: "Tap"

    def do_POST(self) -> None:
        """Note the call; answer it by the tap's own words, or by the server's."""
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.calls.append(Call(self.path, bytes(self.headers), body))
        speak = self.server.speak
        if speak is None or not speak(self, body):
            self._pass_on(body)

    def _pass_on(self, body: bytes) -> None:
        sent = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        server = self.server.upstream(self.path)
        try:
            server.request("POST", self.path, body, sent)
            answer = server.getresponse()
            content = answer.read()
        except OSError:
            self.answer(503, b"")
            return
        finally:
            server.close()
        self.answer(answer.status, content, **{"content-type": answer.headers.get("content-type", "text/plain")})

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def pour(self, first: bytes, part: bytes, most: int, *, chunked: bool = False) -> None:
        """An answer of `most` bytes (`first`, then `part` again and again), for as long as the other side takes it. What was
        taken is added to `server.poured`. `chunked`: the answer does not say how long it is."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-type", "application/protobuf")
        self.send_header(*(("transfer-encoding", "chunked") if chunked else ("content-length", str(most))))
        self.end_headers()
        self.server.pours += 1
        try:
            for number in range(1 + most // len(part)):
                piece = part if number else first + part
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                self.server.poured += len(piece)
        except OSError:
            pass  # they hung up, which is the point

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class Tap(ThreadingHTTPServer):
    """Listens on a port of its own with a certificate; `speak(line, body)` returns True where it answered itself."""

    daemon_threads = True

    def __init__(self, server: tuple[str, int], private: Path, ca: Path, certificate: Path, key: Path) -> None:
        self.calls, self.refused_hands = list[Call](), 0
        self.speak: Callable[[Line, bytes], bool] | None = None
        self.poured = self.pours = 0
        self._open: set[socket.socket] = set()
        self._server, self._private = server, private
        self._trusting = ssl.create_default_context(cafile=str(ca))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        super().__init__(("127.0.0.1", 0), Line)
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def show(self, certificate: Path, key: Path) -> None:
        """Show this certificate from now on, and break every open connection."""
        self._context.load_cert_chain(certificate, key)
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)

    def upstream(self, path: str) -> http.client.HTTPConnection:
        """Where a call goes."""
        if path in CODE_CALLS:
            return OverSocket(self._private)
        return http.client.HTTPSConnection(*self._server, timeout=60, context=self._trusting)

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept, and shake hands; a hospital that does not like the certificate ends it here."""
        raw, address = super().get_request()
        raw.settimeout(20)
        try:
            line = self._context.wrap_socket(raw, server_side=True)
        except (ssl.SSLError, OSError) as error:
            self.refused_hands += isinstance(error, ssl.SSLError)
            raise OSError("no handshake") from None
        line.settimeout(None)
        self._open.add(line)
        return line, address

    def shutdown_request(self, request: object) -> None:
        """See TCPServer."""
        self._open.discard(request)
        super().shutdown_request(request)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that broke; nothing to say."""
