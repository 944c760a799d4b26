"""What every request to Flower 1.41 carries beside its body: the third of the files that touch Flower's private parts, by
itself because what it needs of Flower loads FastAPI and requests (15 MB), and a simulation sends no request."""

from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.common.constant import TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata


class VersionedRequests:
    """Says which Flower is spoken, as Flower's own interceptor does; that one also reads what an error answers, and ends this
    process where the text asks for it."""

    def __init__(self) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component("fedimaging").as_metadata())

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        """Say it, and go on."""
        add_headers(context.request, self._headers)
        return call_next(context)


class SignedRequests:
    """Signs a node's requests as Flower's own interceptor does, with a time half of the server's window (5 minutes) ago: so a
    hospital's clock may be off by two and a half minutes either way, and not by five seconds one way."""

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key, self._public = key, b64encode(public_key_to_bytes(key.public_key())).decode("ascii")

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        """Sign, and go on."""
        moment = (datetime.now(UTC) - timedelta(seconds=TIMESTAMP_TOLERANCE / 2)).isoformat()
        signature = b64encode(sign_message(self._key, moment.encode("ascii"))).decode("ascii")
        add_headers(context.request, {
            FLEET_HTTP_PUBLIC_KEY_HEADER: self._public, TIMESTAMP_HEADER: moment, FLEET_HTTP_SIGNATURE_HEADER: signature,
        })
        return call_next(context)
