"""Which studies this hospital's people approved, revoked, when and why.

A study is known by its fingerprint. Its approved copy is kept byte for byte, and the private plan that was shown to the
person who approved it is kept with the approval: it holds until the study is approved again, whoever comes or goes
meanwhile, so that no number that leaves the hospital follows who opted out. The record is chained as the audit log is.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedimaging.errors import SiteError, SiteRefusal, StudyError
from fedimaging.files import write_whole
from fedimaging.site.audit_log import AuditLog, read
from fedimaging.site.folder import SiteFolder
from fedimaging.study.load import load
from fedimaging.study.schema import Study

if TYPE_CHECKING:
    from fedimaging.privacy.dpsgd import DpPlan  # brings PyTorch, which telling how things stand does not need

_LONGEST = 1000


@dataclass(frozen=True)
class Approval:
    """The newest word on a study. `time` is in seconds since 1970; `plan`: the fields of its `DpPlan`, None where it trains
    without privacy, or not at all; `parameters`: how many numbers the server sends in a round."""

    study: str
    name: str
    approved: bool
    who: str
    why: str
    time: float
    plan: Mapping[str, Any] | None
    parameters: int


def record(
    folder: SiteFolder, study: Study, content: bytes, *, who: str, why: str, plan: "DpPlan | None", parameters: int
) -> None:
    """Approve a study: keep its copy (`content`), then write the approval, durably. Error: SiteError, RunError."""
    who, why = _words("name", who), _words("reason", why)
    write_whole(folder.study_file(study.fingerprint), lambda path: path.write_bytes(content))
    facts = {"study": study.fingerprint, "name": study.name, "who": who, "why": why}
    stored = None if plan is None else asdict(plan)
    AuditLog(folder.approvals_file).write("approved", **facts, plan=stored, parameters=parameters)
    folder.log.write("approved", **facts)


def revoke(folder: SiteFolder, which: str, *, who: str, why: str) -> Approval:
    """Take an approval back: from the next message on the study is refused. `which`: the fingerprint, or its beginning.

    Error: SiteError for a study that is not approved.
    """
    who, why = _words("name", who), _words("reason", why)
    standing = [approval for approval in newest(folder).values() if approval.approved and approval.study.startswith(which)]
    if len(standing) != 1 or not which:
        known = ", ".join(f"{approval.study[:12]} ({approval.name})" for approval in newest(folder).values() if approval.approved)
        raise SiteError(f"{which!r} is the beginning of {len(standing)} approved studies; approved are: {known or 'none'}.")
    facts = {"study": standing[0].study, "name": standing[0].name, "who": who, "why": why}
    AuditLog(folder.approvals_file).write("revoked", **facts)
    folder.log.write("revoked", **facts)
    return standing[0]


def newest(folder: SiteFolder) -> dict[str, Approval]:
    """The newest word on every study, by fingerprint, verified. Error: LedgerError where the record was altered."""
    found: dict[str, Approval] = {}
    for event in read(folder.approvals_file):
        found[event["study"]] = _approval(event, found.get(event["study"]))
    return found


def approved(folder: SiteFolder, fingerprint: str) -> tuple[Approval, Study]:
    """The approval of a study, and its approved copy.

    Error: SiteRefusal("study_not_approved") where it was never approved, was revoked, or its copy is not what was.
    """
    approval = newest(folder).get(fingerprint)
    if approval is None or not approval.approved:
        raise SiteRefusal("study_not_approved", f"study {fingerprint[:12]!r} is not approved here; see `site studies`.")
    try:
        study = load(folder.study_file(fingerprint))
    except StudyError as error:
        raise SiteRefusal("study_not_approved", f"the approved copy cannot be read, approve it again: {error}") from error
    if study.fingerprint != fingerprint:
        text = f"{str(folder.study_file(fingerprint))!r} was altered, or this version of fedimaging reads it as another study"
        raise SiteRefusal("study_not_approved", f"{text}; look at it, and approve it again.")
    return approval, study


def _approval(event: dict[str, Any], before: Approval | None) -> Approval:
    if event["event"] == "approved":
        plan, parameters = event["plan"], int(event["parameters"])
    else:
        plan, parameters = (before.plan, before.parameters) if before else (None, 0)
    return Approval(
        event["study"], event["name"], event["event"] == "approved", event["who"], event["why"], float(event["time"]),
        plan, parameters,
    )


def _words(what: str, text: str) -> str:
    """One line of somebody's words. Error: SiteError for none, or for what would spoil a line of the record."""
    text = text.strip()
    if not text or not text.isprintable() or len(text) > _LONGEST:
        raise SiteError(f"--{what}={text[:40]!r} must be one line of at most {_LONGEST} characters; say who decides, and why.")
    return text
