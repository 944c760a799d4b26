"""Who takes part: nodes on the one side, the hospitals that a study names on the other."""

import time
from collections.abc import Callable, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from fedimaging.errors import RunError, SiteRefusal
from fedimaging.federated import wire
from fedimaging.federated.rounds import Federation
from fedimaging.federated.timing import pace

Join = Callable[[Grid, Federation, Mapping[str, int]], dict[str, int]]
"""Called before every round with the hospitals (site name -> node id) so far; returns those from now on."""

_ASK_AGAIN_SECONDS = 60.0  # a hospital that is not willing yet: its people may be about to approve the study
_CARD_SECONDS = 60.0  # a hospital that is asked for the first time may have its data to decode; it is asked again
_LATE_CARD_SECONDS = 5.0  # … but a round does not wait for a latecomer


def enrol(grid: Grid, federation: Federation) -> dict[str, int]:
    """Ask every connected node for its card; returns site name -> node id of the willing.

    Errors: RunError where two nodes give one name, a site has another model, or a site the study needs is missing.
    """
    nodes: dict[str, int] = {}
    wanted = {*federation.train_sites, *federation.evaluate_sites}
    question = wire.write_enrolment(federation.study.fingerprint)
    messages = [Message(question, node, "query") for node in _connected(grid, len(wanted))]
    for reply in grid.send_and_receive(messages, timeout=federation.study.federation.deadline_seconds):
        if reply.has_error() or wire.refusal_of(reply.content) is not None:
            continue
        card = wire.read_card(reply.content)
        if card.site in nodes:
            raise RunError(f"two nodes say that they are site {card.site!r}; give each hospital its own name.")
        if card.willing and card.site in wanted:
            if card.model != federation.model_fingerprint:
                raise RunError(f"site {card.site!r} builds another model than the server; install the same version.")
            nodes[card.site] = reply.metadata.src_node_id
    missing = sorted(wanted - nodes.keys())
    if missing:
        raise RunError(f"{len(missing)} of {len(wanted)} hospitals did not enrol: {', '.join(missing[:5])}.")
    return nodes


def _connected(grid: Grid, wanted: int, patience_seconds: float = 120.0) -> list[int]:
    """The ids of connected nodes, once there are as many as wanted or patience ends (Ray registers them late)."""
    until = time.monotonic() + patience_seconds
    while len(nodes := list(grid.get_node_ids())) < wanted and time.monotonic() < until:
        time.sleep(0.1)
    return nodes


def enrol_once(grid: Grid, federation: Federation, nodes: Mapping[str, int]) -> dict[str, int]:
    """A simulation's Join: everybody is there from the first round to the last."""
    return dict(nodes) or enrol(grid, federation)


def gather(
    grid: Grid, federation: Federation, nodes: Mapping[str, int], *, patience_seconds: float, enough: int
) -> dict[str, int]:
    """A deployment's Join: `nodes`, and every hospital of the study that has connected since and is willing.

    Waits until all are there; once patience ends, until `enough` training hospitals are. Hospitals are known by their
    registered keys (`Federation.identify`): a node that gives another name than its key's is left out, as is one with
    another model. Their reasons go to `progress("not_enrolled", ...)`.
    """
    found, wanted = dict(nodes), {*federation.train_sites, *federation.evaluate_sites}
    began, asked = time.monotonic(), dict[int, float]()
    seconds = _LATE_CARD_SECONDS if nodes else _CARD_SECONDS
    while missing := sorted(wanted - found.keys()):
        now = time.monotonic()
        nearby = {node: federation.identify(node) for node in grid.get_node_ids()} if federation.identify else {}
        due = {
            node: site for node, site in nearby.items()
            if site in missing and now - asked.get(node, -_ASK_AGAIN_SECONDS) >= _ASK_AGAIN_SECONDS
        }
        asked |= dict.fromkeys(due, now)
        found |= _willing(grid, federation, due, seconds)
        missing = [site for site in missing if site not in found]
        waited = time.monotonic() - began
        if not missing or (waited >= patience_seconds and len(found.keys() & set(federation.train_sites)) >= enough):
            break
        away = [site for site in missing if site not in nearby.values()]
        federation.progress("waiting", {"missing": missing, "away": away})
        time.sleep(pace(waited, least=0.1, most=5.0))
    return found


def _willing(grid: Grid, federation: Federation, sites: Mapping[int, str | None], seconds: float) -> dict[str, int]:
    """Of these nodes (node id -> site) those that take part."""
    found = {}
    question = wire.write_enrolment(federation.study.fingerprint)
    for reply in grid.send_and_receive([Message(question, node, "query") for node in sites], timeout=seconds):
        node = reply.metadata.src_node_id
        site = sites.get(node) or ""
        reason = _why_not(reply, site, federation)
        if reason:
            federation.progress("not_enrolled", {"site": site, "reason": reason})
        else:
            found[site] = node
    return found


def _why_not(reply: Message, site: str, federation: Federation) -> str:
    """Why the node that sent this card does not take part; empty where it does."""
    if reply.has_error():
        return "error"
    code = wire.refusal_of(reply.content)
    if code is not None:
        return code
    try:
        card = wire.read_card(reply.content)
    except SiteRefusal as refusal:
        return refusal.code
    if card.site != site:
        return "another_name"
    if card.model != federation.model_fingerprint:
        return "another_model"
    return "" if card.willing else "not_willing"
