"""What `surface.py` runs in the stranger's network: `knock.py ADDRESS PORT FOLDER`; prints what it found as JSON.

Each finding is [what was tried, what must come, what came].
"""

import base64
import errno
import importlib
import json
import pkgutil
import re
import selectors
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).parents[2]))

import flwr.proto
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from fedimaging.errors import FedimagingError, LinkRefused
from fedimaging.federated.flower_http import FleetLine
from fedimaging.federated.superlink import HOSPITALS_CALLS
from fedimaging.keys import read_private

ADDRESS, PORT, FOLDER = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
Finding = list[str]
_EMPTY = ("push-messages", "push-object", "pull-object", "confirm-message-received")
_EXPECTED = {  # 412: a key that joined already, or is not registered; 500: Flower's answer where a question is empty
    "": {"": "401"}, "stranger": {"": "401", "/v1/fleet/activate-node": "412"},
    "registered": {"": "200", "/v1/fleet/activate-node": "412"} | {f"/v1/fleet/{name}": "500" for name in _EMPTY},
}
_AT_ONCE = 400
_NONE: Mapping[str, str] = MappingProxyType({})


def open_ports() -> list[int]:
    """Every TCP port that takes a connection; all 65 535 are tried."""
    found, waiting, chooser = list[int](), iter(range(1, 65536)), selectors.DefaultSelector()
    more = True
    while more or chooser.get_map():
        while more and len(chooser.get_map()) < _AT_ONCE:
            port = next(waiting, None)
            if port is None:
                more = False
                break
            tried = socket.socket()
            tried.setblocking(False)
            code = tried.connect_ex((ADDRESS, port))
            if code == errno.EINPROGRESS:
                chooser.register(tried, selectors.EVENT_WRITE, port)
            else:
                found += [port] if code == 0 else []
                tried.close()
        ready = chooser.select(5)
        if not ready and chooser.get_map():
            raise TimeoutError("ports that neither take nor refuse a connection")
        for key, _ in ready:
            sock: socket.socket = key.fileobj  # type: ignore[assignment]
            found += [key.data] if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 else []
            chooser.unregister(sock)
            sock.close()
    return sorted(found)


def raw(request: bytes, context: ssl.SSLContext | None) -> str:
    """The status of the answer to these very bytes, or how it ended."""
    try:
        with socket.create_connection((ADDRESS, PORT), 10) as plain:
            line = context.wrap_socket(plain, server_hostname=ADDRESS) if context else plain
            line.sendall(request)
            answer = b""
            while b"\r\n" not in answer and (part := line.recv(4096)):
                answer += part
    except ssl.SSLError as error:
        return f"no TLS ({error.reason})"
    except OSError as error:
        return type(error).__name__
    status = re.match(rb"HTTP/1.1 (\d+)", answer)
    return status[1].decode() if status else "closed without an answer"


def trusting() -> ssl.SSLContext:
    """A context that knows the federation's authority, as anybody may."""
    return ssl.create_default_context(cafile=str(FOLDER / "server" / "ca.crt"))


def signed(name: str) -> dict[str, str]:
    """The headers with which a key signs a call; none for no key."""
    if not name:
        return {}
    key = read_private(FOLDER / f"{name}.key")
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

    stamp = datetime.now(UTC).isoformat()
    signature = base64.b64encode(sign_message(key, stamp.encode())).decode()
    return {FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode(), TIMESTAMP_HEADER: stamp,
            FLEET_HTTP_SIGNATURE_HEADER: signature}  # fmt: skip


def body_of(path: str, key: str, node_id: int) -> bytes:
    """What a call must say to be understood: which node speaks, or with which key it joins."""
    said = PROTOBUF_REQUEST_TYPES["POST", path]()
    names = {field.name for field in said.DESCRIPTOR.fields}
    if "node" in names:
        said.node.node_id = node_id
    elif "node_id" in names:
        said.node_id = node_id
    if "public_key" in names:
        said.public_key = (FOLDER / f"{key or 'registered'}.pub").read_bytes()
    if "heartbeat_interval" in names:
        said.heartbeat_interval = 30.0
    return bytes(said.SerializeToString())


def asked(target: str, *, method: str = "POST", **headers: str) -> bytes:
    """A request by the registered key with further headers, as it goes over the line."""
    return request(target, method=method, headers=headers)


def request(
    target: str, key: str = "registered", method: str = "POST", body: bytes = b"", headers: Mapping[str, str] = _NONE
) -> bytes:
    """A request as it goes over the line."""
    told = {"host": f"{ADDRESS}:{PORT}", "content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE,
            "content-length": str(len(body)), "connection": "close"} | signed(key)  # fmt: skip
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    return "\r\n".join([f"{method} {target} HTTP/1.1", *(f"{n}: {v}" for n, v in told.items()), "", ""]).encode("latin-1") + body


def every_call() -> list[str]:
    """Every path that Flower 1.41 has for a call, in each of its styles."""
    paths = {path for _, path in PROTOBUF_REQUEST_TYPES}
    for module in pkgutil.iter_modules(flwr.proto.__path__, "flwr.proto."):
        if not module.name.endswith("_pb2"):
            continue
        for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                kebab = re.sub(r"(?<!^)(?=[A-Z])", "-", method.name).lower()
                name = re.sub(r"(?<!^)(?=[A-Z])", "-", service.name).lower()
                paths |= {f"/{service.full_name}/{method.name}", f"/v1/{name}/{kebab}", f"/api/v1/{name}/{kebab}"}
    return sorted(paths)


def calls() -> dict[str, list[Finding]]:
    """The eight calls by registered key, stranger and nobody; then all others."""
    context, paths = trusting(), every_call()
    others = [path for path in paths if path not in HOSPITALS_CALLS]
    line = FleetLine(f"{ADDRESS}:{PORT}", FOLDER / "server" / "ca.crt", read_private(FOLDER / "registered.key"))
    line.activate()
    node_id, found = line._node.node_id, dict[str, list[Finding]]()
    for words, key in (("no key", ""), ("an unregistered key", "stranger"), ("the node's own key", "registered")):
        found[f"the eight calls, by {words}"] = rows = []
        for path in sorted(HOSPITALS_CALLS, key=lambda path: "/deactivate" in path):
            status = raw(request(path, key, body=body_of(path, key, node_id)), context)
            rows.append([f"{path}, by {words}", _EXPECTED[key].get(path, _EXPECTED[key][""]), status])
    for kind in ("control", "runtime", "fleet", ""):
        chosen = [p for p in others if (f"/{kind}" in p.lower() or f".{kind}" in p.lower()) and kind] if kind else others
        for words, key in (("registered", "registered"), ("unregistered", "stranger")):
            said = f"Flower's other calls under {kind}" if kind else "all of Flower's other calls"
            found[f"*{said}, by {'a' if key == 'registered' else 'an'} {words} key"] = [
                [path, "404", raw(request(path, key), context)] for path in chosen]
    return found


def tricks() -> list[Finding]:
    """Paths, methods and headers that might be read in two ways."""
    context, real, wanted = trusting(), "/v1/fleet/pull-messages", "/v1/control/list-nodes"
    paths = [
        "/", "/health", "/docs", "/redoc", "/openapi.json", "/metrics", "/v1", "/v1/fleet", "/v1/fleet/", f"/{real}", f"{real}/",
        f"{real}/..", "/v1/fleet/../control/list-nodes", "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/pull-messages/../../control/list-nodes", "/V1/Fleet/Pull-Messages", "/v1%2fcontrol%2flist-nodes", f"/.{real}",
        f"{real};{wanted}", f"{real}%00", f"{real}%0d%0a", f"{real}.json", f"/fleet{real}", f"/api{real}", f"{wanted}?{real}",
        f"{wanted}#{real}", f"{wanted}%3f{real}", "/v1/control/../fleet/../control/list-nodes", "/v1/contro%6c/list-nodes",
        f"https://{ADDRESS}:{PORT}{wanted}", "*", "\\v1\\control\\list-nodes",
        "/v1/\uff46leet/pull-messages".encode().decode("latin-1"),
    ]
    found = [[f"POST {path!r}", "nothing", _nothing(raw(request(path), context))] for path in paths]
    found += [[f"{method} {real}", "nothing", _nothing(raw(request(real, method=method), context))]
              for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "post")]  # fmt: skip
    for header in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Forwarded-Path", "X-Script-Name"):
        status = raw(asked("/health", **{header: wanted}), context)
        found.append([f"{header}: {wanted}, on /health", "nothing", _nothing(status)])
    upgrade = {
        "connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "x" * 22 + "==", "sec-websocket-version": "13",
    }
    found.append(["a websocket", "nothing", _nothing(raw(asked(real, method="GET", **upgrade), context))])
    long = raw(asked("/v1/fleet/push-object", content_length=str(10**10)), context)
    return [*found, ["a request that says it has 10 GB", "413", long]]


def _nothing(status: str) -> str:
    """404, or a request that the server cannot even read."""
    return "nothing" if status in ("404", "400", "closed without an answer") else status


def protocols() -> list[Finding]:
    """Other ways to speak than HTTP over TLS 1.2 or 1.3."""
    plain = raw(request("/v1/fleet/pull-messages"), None)
    found = [["HTTP without TLS", "no", "no" if not plain.isdigit() else plain]]
    for version in ("TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"):
        context = trusting()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with_version = ssl.TLSVersion[version]
        context.minimum_version = context.maximum_version = with_version
        status = raw(request("/v1/fleet/pull-messages"), context)
        modern = version in ("TLSv1_2", "TLSv1_3")
        found.append([version, "answers" if modern else "no", "answers" if status.isdigit() else "no"])
    return found


def a_hospital() -> list[Finding]:
    """A registered key can do what a hospital does; a stranger cannot, and cannot speak for it."""
    line = FleetLine(f"{ADDRESS}:{PORT}", FOLDER / "server" / "ca.crt", read_private(FOLDER / "registered.key"))
    other = FleetLine(f"{ADDRESS}:{PORT}", FOLDER / "server" / "ca.crt", read_private(FOLDER / "stranger.key"))
    line.activate()
    other._node = line._node
    found = [
        ["the registered hospital asks for messages", "None", _told(line.next)], ["… and beats", "True", _told(line.beat)],
        ["a stranger joins", "HTTP 412", _told(other.activate)],
        ["a stranger asks for its messages", "HTTP 401", _told(other.next)],
        ["a stranger says that it leaves", "HTTP 401", _told(other.deactivate)],
    ]  # fmt: skip
    line.deactivate()
    return found


def _told(call: Callable[[], object]) -> str:
    try:
        return repr(call())
    except LinkRefused as refused:
        return f"HTTP {refused.status}"
    except FedimagingError as error:
        return type(error).__name__


def main() -> None:
    """Knock everywhere."""
    ports = open_ports()
    found: dict[str, list[Finding]] = {"ports": [["all TCP ports from 1 to 65535: which are open", str([PORT]), str(ports)]]}
    found["protocols"] = protocols()
    found["hospital"] = a_hospital()
    found |= calls()
    found["*path, method and header tricks"] = tricks()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
