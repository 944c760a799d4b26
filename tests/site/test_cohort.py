import pytest

from fedimaging.errors import DataError
from fedimaging.site.cohort import choose
from fedimaging.site.policy import SitePolicy

COLUMNS = {
    "patient_id": ["a", "a", "b", "c", "d"],
    "site": ["north", "north", "north", "north", "south"],
    "consent": ["Yes", "yes", "yes", "", "yes"],
}
CONSENT = SitePolicy(consent_column="consent")
NOBODY = frozenset[str]()


def test_without_rules_all_rows_of_this_hospital_stay() -> None:
    cohort = choose(COLUMNS, SitePolicy(), NOBODY, "north", "site")
    assert cohort.keep == (True, True, True, True, False)
    assert cohort.patients == {"a", "b", "c"}
    assert cohort.left_out == frozenset()


def test_a_manifest_without_the_column_is_all_this_hospitals() -> None:
    assert choose(COLUMNS, SitePolicy(), NOBODY, "west", "hospital").keep == (True,) * 5


def test_a_manifest_of_other_hospitals_is_told() -> None:
    with pytest.raises(DataError, match="no row of the manifest has 'west' in its column 'site'"):
        choose(COLUMNS, SitePolicy(), NOBODY, "west", "site")


def test_opted_out_patients_go_with_all_rows() -> None:
    cohort = choose(COLUMNS, SitePolicy(), frozenset({"a", "z"}), "north", "site")
    assert cohort.keep == (False, False, True, True, False)
    assert (cohort.opted_out, cohort.without_consent) == ({"a"}, frozenset())


def test_consent_must_stand_in_every_row() -> None:
    cohort = choose(COLUMNS, CONSENT, frozenset({"b"}), "north", "site")
    assert cohort.keep == (True, True, False, False, False)
    assert (cohort.opted_out, cohort.without_consent, cohort.left_out) == ({"b"}, {"c"}, {"b", "c"})
    twice = COLUMNS | {"consent": ["yes", "withdrawn", "yes", "yes", "yes"]}
    assert choose(twice, CONSENT, NOBODY, "north", "site").without_consent == {"a"}
    other = SitePolicy(consent_column="consent", consent_values=("withdrawn",))
    assert choose(twice, other, NOBODY, "north", "site").without_consent == {"a", "b", "c"}


def test_a_missing_column_of_consent_stops_everything() -> None:
    with pytest.raises(DataError, match=r"consent_column='concent' is not known; did you mean 'consent'.* Nobody may be used"):
        choose(COLUMNS, SitePolicy(consent_column="concent"), NOBODY, "north", "site")


def test_the_digest_tells_who_is_left_out_and_not_why() -> None:
    nobody, one = (choose(COLUMNS, SitePolicy(), frozenset(out), "north", "site") for out in ((), ("c",)))
    assert nobody.digest != one.digest == choose(COLUMNS, CONSENT, NOBODY, "north", "site").digest
