"""A hospital's own runner: it joins the federation, and stays.

It speaks to the server as Flower's SuperNode does, with the hospital's registered key, but takes messages only: it never
asks for the code that a run carries (there is no call in it that could), runs no other program, and opens no port. What
answers a message is the ClientApp of the installed package.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedimaging.errors import FedimagingError, LinkDown, LinkError, LinkRefused, LinkUntrusted, RunError
from fedimaging.federated import wire
from fedimaging.federated.flower_http import HEARTBEAT_SECONDS, FleetLine
from fedimaging.federated.flower_internals import Envelope, MessageGone, MessageTooLarge
from fedimaging.federated.timing import Heartbeat, pace
from fedimaging.keys import read_private

_LOG = logging.getLogger("fedimaging.site")

T = TypeVar("T")


@dataclass(frozen=True)
class Joining:
    """Whom to join, and as whom. `server`: "host:port"; `ca`: the federation's authority; `key`: this hospital's key."""

    name: str
    server: str
    ca: Path
    key: Path


@dataclass(frozen=True)
class Work:
    """What the runner does with what comes.

    `app` answers messages. `largest_message()`: bytes that a message of any approved study can have; more is refused before
    it is read. `refused(code)`: note a refusal in the hospital's log. `say(text)`: one line for the hospital's screen.
    """

    app: ClientApp
    largest_message: Callable[[], int]
    refused: Callable[[str], None]
    say: Callable[[str], None]


def run_site(joining: Joining, work: Work, stop: threading.Event) -> None:
    """Join and answer until `stop` is set; then leave, so that the server knows at once.

    A server that is away, refuses, or shows a wrong certificate is asked again for ever, less and less often. Errors:
    RunError for a key or certificate file that cannot be read.
    """
    line, trouble = FleetLine(joining.server, joining.ca, read_private(joining.key)), _Trouble(work.say)
    try:
        while not stop.is_set():
            try:
                line.activate()
            except LinkError as error:
                stop.wait(trouble.met(_why(error)))
                continue
            trouble.over()
            work.say(f"{joining.name} has joined {joining.server}.")
            _stay(line, joining.name, work, stop)
    finally:
        line.close()


def _stay(line: FleetLine, name: str, work: Work, stop: threading.Event) -> None:
    """Answer messages until `stop`, or until the server does not know this hospital any more."""
    trouble, idle_since = _Trouble(work.say), time.monotonic()
    with Heartbeat(line.beat, HEARTBEAT_SECONDS) as heart:
        while not stop.is_set() and not heart.lost.is_set():
            try:
                envelope = line.next()
            except LinkDown as error:
                stop.wait(trouble.met(str(error)))
                continue
            except LinkError as error:
                work.say(_why(error))
                break
            except (MessageTooLarge, ValueError) as error:
                stop.wait(trouble.met(f"the server sent something that is no message: {error}"))
                continue
            trouble.over()
            if envelope is None:
                stop.wait(pace(time.monotonic() - idle_since, least=0.1, most=3.0))
                continue
            _attend(line, name, envelope, work, stop)
            idle_since = time.monotonic()
    try:
        line.deactivate()
    except LinkError as error:
        _LOG.info("could not tell the server that %s leaves: %s", name, error)


def _attend(line: FleetLine, name: str, envelope: Envelope, work: Work, stop: threading.Event) -> None:
    """Answer one message."""
    began = time.monotonic()
    reply = _answer(line, name, envelope, work, stop)
    if reply is not None:
        seconds = time.monotonic() - began
        _until_through(lambda: line.reply(reply, seconds), work, stop)


def _answer(line: FleetLine, name: str, envelope: Envelope, work: Work, stop: threading.Event) -> Message | None:
    try:
        envelope.check(work.largest_message())
        message = _until_through(lambda: line.fetch(envelope, work.largest_message()), work, stop)
    except MessageTooLarge as error:
        return _refusal(envelope, name, "message_too_large", f"{error}: larger than any approved study needs", work)
    except MessageGone:
        return _refusal(envelope, name, "error", "a message whose parts the server has lost", work)
    except ValueError as error:
        return _refusal(envelope, name, "bad_message", str(error), work)
    except FedimagingError as error:  # the hospital's own files do not say what is approved
        return _refusal(envelope, name, error.code, str(error), work)
    if message is None:
        return None
    try:
        return work.app(message=message, context=_context(envelope))
    except Exception as error:  # Flower's own routing: the app's handlers turn all that they meet into codes
        return _refusal(envelope, name, "bad_message", f"a message of no known kind: {error!r}", work)


def _refusal(envelope: Envelope, name: str, code: str, why: str, work: Work) -> Message:
    _LOG.error("%s refused a message (%s): %s", name, code, why)
    try:
        work.refused(code)
    except RunError as error:  # the server gets its answer also where the disk of the log is full
        _LOG.error("%s: %s", name, error)
    return Message(wire.write_refusal(name, code), reply_to=envelope.head)


def _until_through(call: Callable[[], T], work: Work, stop: threading.Event) -> T | None:
    """The call's answer, however long the server is away; None where nobody waits for it any more, or once `stop` is set
    and one attempt has failed."""
    trouble = _Trouble(work.say)
    while True:
        try:
            answer = call()
        except (LinkDown, LinkUntrusted) as error:
            if stop.wait(trouble.met(str(error))):
                return None
        except LinkRefused as error:
            _LOG.info("the run has ended meanwhile: %s", error)
            return None
        else:
            trouble.over()
            return answer


class _Trouble:
    """Says once what is wrong and once that it is over, and how long to wait between attempts: 1 s to a minute."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._since, self._said = say, 0.0, ""

    def met(self, text: str) -> float:
        """Seconds to wait."""
        if not self._since:
            self._since = time.monotonic()
        if text != self._said:
            self._say(text)
            self._said = text
        return pace(time.monotonic() - self._since, least=1.0, most=60.0, share=0.25)

    def over(self) -> None:
        """It works, or works again."""
        if self._said:
            self._say("the server is there again.")
        self._since, self._said = 0.0, ""


def _why(error: LinkError) -> str:
    if isinstance(error, LinkRefused) and error.status == 412:
        return (
            "the server does not let this hospital in yet. Its key is not registered (ask the operator, and compare the "
            "fingerprint), or another process used it in the last 20 seconds; trying again."
        )
    return f"{error}"


def _context(envelope: Envelope) -> Context:
    metadata = envelope.head.metadata
    return Context(metadata.run_id, metadata.dst_node_id, node_config={}, state=RecordDict(), run_config={})
