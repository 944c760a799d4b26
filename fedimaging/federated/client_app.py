"""The one ClientApp. What differs between a simulation and a hospital is only how a Site is opened."""

import logging
from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedimaging.errors import FedimagingError, RunError, SiteRefusal
from fedimaging.federated import wire
from fedimaging.site.site import Site

_LOG = logging.getLogger("fedimaging.site")


OpenSite = Callable[[Context, str], Site]
"""Opens the hospital for the study with this fingerprint, which is whatever a message says. Error: SiteRefusal."""


def build_client_app(open_site: OpenSite, refused: Callable[[str], None] = lambda code: None) -> ClientApp:
    """A ClientApp over `open_site`. Guarantee: what leaves in an error is a code of `wire.REFUSALS`, nothing else.

    `refused(code)`: note that a message was refused which names no study, so that no hospital was opened whose log would
    say so.
    """
    app = ClientApp()

    def answer(message: Message, context: Context, work: Callable[[Site, RecordDict], RecordDict]) -> Message:
        try:
            study = wire.study_of(_content(message))
        except SiteRefusal as error:
            _LOG.error("refused %s, which names no study", message.metadata.message_type)
            return Message(_noted(error.code, "", refused), reply_to=message)
        return _opened(message, open_site, context, study, work)

    @app.query()
    def enrol(message: Message, context: Context) -> Message:
        return answer(message, context, _card)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, _train)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, lambda site, content: _evaluate(site, content, final=False))

    @app.evaluate("final")
    def evaluate_final(message: Message, context: Context) -> Message:
        return answer(message, context, lambda site, content: _evaluate(site, content, final=True))

    @app.evaluate("calibrate")
    def calibrate(message: Message, context: Context) -> Message:
        return answer(message, context, _calibrate)

    @app.evaluate("personal")
    def evaluate_personal(message: Message, context: Context) -> Message:
        return answer(message, context, lambda site, content: _evaluate(site, content, final=True, personal=True))

    return app


def _card(site: Site, content: RecordDict) -> RecordDict:
    willing = wire.read_enrolment(content) == site.fingerprint
    return wire.write_card(wire.SiteCard(site.name, site.bench.fingerprint, willing))


def _train(site: Site, content: RecordDict) -> RecordDict:
    return wire.write_update(site.train(wire.read_instruction(content)))


def _evaluate(site: Site, content: RecordDict, *, final: bool, personal: bool = False) -> RecordDict:
    return wire.write_evaluation(site.evaluate(wire.read_instruction(content), final=final, personal=personal))


def _calibrate(site: Site, content: RecordDict) -> RecordDict:
    return wire.write_calibration(site.calibrate(wire.read_instruction(content)))


def _content(message: Message) -> RecordDict:
    """Error: SiteRefusal for a message that is an error, which only replies are."""
    if not message.has_content():
        raise SiteRefusal("bad_message")
    return message.content


def _opened(
    message: Message, open_site: OpenSite, context: Context, study: str, work: Callable[[Site, RecordDict], RecordDict]
) -> Message:
    """Open the hospital and do the work; an error is logged here in full and leaves as a code."""
    site: Site | None = None
    try:
        site = open_site(context, study)
        content = work(site, message.content)
    except FedimagingError as error:
        _LOG.error("%s refused %s: %s", site.name if site else "site", message.metadata.message_type, error)
        content = _refuse(site, error.code)
    except Exception:
        _LOG.exception("%s failed in %s", site.name if site else "site", message.metadata.message_type)
        content = _refuse(site, "error")
    return Message(content, reply_to=message)


def _refuse(site: Site | None, code: str) -> RecordDict:
    if site is None:  # whoever could not open it has noted why
        return wire.write_refusal("", code)
    return _noted(code, site.name, lambda code: site.log.write("refused", study=site.fingerprint, code=code))


def _noted(code: str, name: str, note: Callable[[str], None]) -> RecordDict:
    try:
        note(code)
    except RunError as error:  # the server gets its answer also where the disk of the log is full
        _LOG.error("%s: %s", name or "site", error)
    return wire.write_refusal(name, code)
