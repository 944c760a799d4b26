"""A row of the table: what was tried, what the notes say must come out, what came out, and whether it holds."""

from collections.abc import Callable
from dataclasses import dataclass

from fedimaging.errors import FedimagingError


@dataclass(frozen=True)
class Row:
    """`expected` is a number or rule fixed before this code was written; `measured` is computed afresh."""

    what: str
    expected: str
    measured: str
    holds: bool


def near(what: str, measured: float, expected: float, tolerance: float, digits: int = 3) -> Row:
    """The measured number lies within the tolerance."""
    said = f"{expected:.{digits}f} ± {tolerance:g}"
    return Row(what, said, f"{measured:.{digits}f}", abs(measured - expected) <= tolerance)


def below(what: str, measured: float, limit: float) -> Row:
    """The measured number is at most the limit."""
    return Row(what, f"≤ {limit:.6g}", f"{measured:.6g}", measured <= limit)


def within(what: str, measured: float, low: float, high: float) -> Row:
    """The measured number lies between two."""
    return Row(what, f"{low:g} to {high:g}", f"{measured:.4g}", low <= measured <= high)


def all_of(what: str, held: list[bool]) -> Row:
    """Every one of several checks holds."""
    return Row(what, f"{len(held)} of {len(held)}", f"{sum(held)} of {len(held)}", all(held) and bool(held))


def refused(what: str, action: Callable[[], object]) -> Row:
    """The action ends in an error raised on purpose."""
    try:
        action()
    except FedimagingError as error:
        return Row(what, "refused", f"refused ({type(error).__name__})", True)
    except ValueError as error:  # pydantic's own, for a study that cannot be
        return Row(what, "refused", f"refused ({type(error).__name__})", True)
    return Row(what, "refused", "accepted", False)
