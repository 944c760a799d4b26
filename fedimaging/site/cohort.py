"""Who of a hospital's manifest may be used for a study: consent and opt-out come before anything else is read.

A patient who is left out is left out whole: no file of theirs is opened, for training or testing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedimaging.errors import DataError, unknown_name
from fedimaging.site.policy import SitePolicy


@dataclass(frozen=True)
class Cohort:
    """`keep`: which rows of the manifest may be used. The sets are patient ids: all of this hospital in the manifest,
    those among them on the opt-out list, and those without consent."""

    keep: tuple[bool, ...]
    patients: frozenset[str]
    opted_out: frozenset[str]
    without_consent: frozenset[str]

    @property
    def left_out(self) -> frozenset[str]:
        """Patients who may not be used."""
        return self.opted_out | self.without_consent

    @property
    def digest(self) -> str:
        """Changes whenever somebody is newly left out or taken in."""
        return hashlib.sha256("\n".join(sorted(self.left_out)).encode()).hexdigest()


def choose(
    columns: Mapping[str, Sequence[str]], policy: SitePolicy, opt_out: frozenset[str], site: str, site_column: str
) -> Cohort:
    """The rows that may be used, of a manifest's columns (one text a row, `patient_id` among them).

    Where the manifest has the study's column of hospitals, the rows of other hospitals are not this one's. Error:
    DataError where no row is this hospital's, or the column of consent is missing.
    """
    patients = columns["patient_id"]
    mine = [name == site for name in columns[site_column]] if site_column in columns else [True] * len(patients)
    if not any(mine):
        text = f"no row of the manifest has {site!r} in its column {site_column!r}; name this hospital as the manifest does."
        raise DataError(text)
    ours = frozenset(patient for patient, own in zip(patients, mine, strict=True) if own)
    opted_out = ours & opt_out
    refusing = ours & _without_consent(columns, policy)
    out = opted_out | refusing
    keep = tuple(own and patient not in out for patient, own in zip(patients, mine, strict=True))
    return Cohort(keep, ours, opted_out, refusing)


def _without_consent(columns: Mapping[str, Sequence[str]], policy: SitePolicy) -> frozenset[str]:
    """Patients with a row that does not say yes."""
    column = policy.consent_column
    if column is None:
        return frozenset()
    if column not in columns:
        raise DataError(f"{unknown_name('consent_column', column, columns)} Nobody may be used before it is right.")
    allowed = {value.strip().casefold() for value in policy.consent_values}
    rows = zip(columns["patient_id"], columns[column], strict=True)
    return frozenset(patient for patient, value in rows if value.casefold() not in allowed)
