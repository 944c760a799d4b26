"""Every error that fedimaging raises on purpose. Each class says whose hands the repair is in.

FedimagingError            exit code 2, one line, no traceback
├── StudyError             the researcher's study file or overrides
├── DataError              the hospital's manifest, images, masks or labels
├── SiteError              the hospital's own folder: settings, policy, keys, approvals
├── RunError               the run folder, the disk, a resume that does not fit
├── ReleaseError           a release that its checks, its manifest or its signature do not allow
├── LinkError              the network between a hospital and the server
│   ├── LinkDown           no answer: try again later
│   │   └── LinkCut        no answer to what may have arrived
│   ├── LinkUntrusted      an answer from somebody else
│   └── LinkRefused        an answer, and it is no
├── PrivacyError           a privacy claim that cannot be kept
│   ├── BudgetExceeded     the hospital's own budget would be passed
│   └── LedgerError        the ledger is missing, altered or rolled back
└── SiteRefusal            the hospital refuses what the server sent

The text is for the person at this machine. What leaves a hospital is only `code`: a short word with no path,
patient id or count in it.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class FedimagingError(Exception):
    """Base of all errors raised on purpose; `code` may leave a hospital, the text may not."""

    code = "error"


class StudyError(FedimagingError):
    """The study file, or an override of it, cannot be used as it is."""

    code = "study"


class DataError(FedimagingError):
    """A manifest, image, mask or label cannot be used as it is."""

    code = "data"


class SiteError(FedimagingError):
    """A hospital's folder cannot be used as it is, or its policy does not allow what was asked."""

    code = "site"


class RunError(FedimagingError):
    """The run folder cannot be written, resumed or read."""

    code = "run"


class ReleaseError(FedimagingError):
    """A model may not be released, or a release folder is not as it was signed."""

    code = "release"


class LinkError(FedimagingError):
    """The other end of the network, or the way there."""

    code = "run"


class LinkDown(LinkError):
    """No answer, or one that nothing can be made of, or that says to come back later."""


class LinkCut(LinkDown):
    """No answer to a question that may have arrived: what it asked for may have been done, and the answer be lost."""


class LinkUntrusted(LinkError):
    """Whoever answers has no certificate of the federation's authority."""


class LinkRefused(LinkError):
    """The other end refuses. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the server refused (HTTP {status}): {message}")
        self.status = status


class PrivacyError(FedimagingError):
    """A privacy claim that cannot be accounted for."""

    code = "privacy"


class BudgetExceeded(PrivacyError):
    """The next round would pass the hospital's budget."""

    code = "budget_exceeded"


class LedgerError(PrivacyError):
    """The ledger is missing, altered or older than its recorded head."""

    code = "ledger"


class SiteRefusal(FedimagingError):
    """The hospital refuses an instruction. `code` is one of the words in `federated/wire.py`."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.code = code


def bad_value(name: str, value: object, rule: str, remedy: str = "") -> str:
    """One shape for every complaint about a value: what was given, what is allowed, what to do."""
    text = f"{name}={value!r} {rule}"
    return f"{text}; {remedy}." if remedy else f"{text}."


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Complain about an unknown name: the nearest known one first, then all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{kind}={name!r} is not known; {hint}known: {', '.join(names)}."
