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

from fedimaging.errors import FedimagingError, LinkCut, LinkDown, LinkError, LinkRefused, LinkUntrusted, RunError
from fedimaging.federated import wire
from fedimaging.federated.flower_http import HEARTBEAT_SECONDS, FleetLine
from fedimaging.federated.flower_internals import Envelope, MessageGone, MessageTooLarge, by_the_servers_clock
from fedimaging.federated.timing import Heartbeat, pace
from fedimaging.keys import read_private

_LOG = logging.getLogger("fedimaging.site")

_LONGEST_WAIT_SECONDS = 10.0  # a question costs the server next to nothing, and training goes on so much later

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
    line, trouble = FleetLine(joining.server, joining.ca, read_private(joining.key)), _Trouble(work)
    try:
        while not stop.is_set():
            try:
                line.activate()
            except LinkError as error:
                stop.wait(trouble.met(_why(error), _code(error)))
                continue
            trouble.over()
            work.say(f"{joining.name} has joined {joining.server}.")
            _stay(line, joining.name, work, trouble, stop)
            stop.wait(pace(0.0, least=1.0, most=1.0))  # else a server could make it join again without pause
    finally:
        line.close()


def _stay(line: FleetLine, name: str, work: Work, trouble: "_Trouble", stop: threading.Event) -> None:
    """Answer messages until `stop`, or until it is better to join anew: the server does not know this hospital any more, or
    a message may have got lost with an answer that was cut off (who joins anew gets what he has not answered again)."""
    idle_since, cut = time.monotonic(), False
    with Heartbeat(line.beat, HEARTBEAT_SECONDS) as heart:
        while not stop.is_set() and not heart.lost.is_set():
            try:
                envelope = line.next()
            except LinkDown as error:
                cut = cut or isinstance(error, LinkCut)
                stop.wait(trouble.met(str(error)))
                continue
            except LinkError as error:  # said and noted once, here or by the next attempt to join
                trouble.met(_why(error), _code(error))
                break
            except ValueError as error:
                stop.wait(trouble.met(f"the server sent something that is no message: {error}"))
                continue
            trouble.over()
            if envelope is None and cut:
                break
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
        by_the_servers_clock(reply)
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
    _note(work, code)
    return Message(wire.write_refusal(name, code), reply_to=envelope.head)


def _note(work: Work, code: str) -> None:
    try:
        work.refused(code)
    except RunError as error:  # the server gets its answer also where the disk of the log is full
        _LOG.error("%s", error)


def _until_through(call: Callable[[], T], work: Work, stop: threading.Event) -> T | None:
    """The call's answer, however long the server is away; None where nobody waits for it any more, or once `stop` is set
    and one attempt has failed."""
    trouble = _Trouble(work)
    while True:
        try:
            answer = call()
        except (LinkDown, LinkUntrusted) as error:
            if stop.wait(trouble.met(str(error), _code(error))):
                return None
        except LinkRefused as error:
            if error.status == 401:  # the clock, most likely: what was trained is kept until it is right
                if stop.wait(trouble.met(_why(error))):
                    return None
                continue
            _LOG.info("the run has ended meanwhile: %s", error)
            return None
        else:
            trouble.over()
            return answer


class _Trouble:
    """Says once what is wrong and once that it is over, and how long to wait between attempts: 1 s to ten."""

    def __init__(self, work: Work) -> None:
        self._work, self._since, self._said = work, 0.0, ""

    def met(self, text: str, code: str = "") -> float:
        """Seconds to wait. `code`: what is noted in the hospital's log, beside what is said on its screen."""
        if not self._since:
            self._since = time.monotonic()
        if text != self._said:
            self._work.say(text)
            self._said = text
            if code:
                _note(self._work, code)
        return pace(time.monotonic() - self._since, least=1.0, most=_LONGEST_WAIT_SECONDS, share=0.25)

    def over(self) -> None:
        """It works, or works again."""
        if self._said:
            self._work.say("the server is there again.")
        self._since, self._said = 0.0, ""


def _code(error: LinkError) -> str:
    """What the hospital's log says of it. A server that is away is nobody's attack; one that is another is."""
    return "server_untrusted" if isinstance(error, LinkUntrusted) else ""


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
