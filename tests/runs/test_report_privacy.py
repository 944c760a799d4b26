"""The privacy claim of a run is that of its weakest hospital."""

import math
from typing import Any

import pytest

from fedimaging.runs.report_privacy import privacy_bands, privacy_facts, privacy_phrase, site_privacy, unit_words


def site(**changes: Any) -> dict[str, Any]:
    figures = {"unit": "patient", "epsilon": 4.0, "delta": 1e-5, "budget_epsilon": 8.0, "epsilon_rdp": 4.4, "noise": "secure"}
    return {"role": "train", "privacy": figures | changes}


def headings(sites: dict[str, Any]) -> list[str]:
    return [band.heading for band in privacy_bands(privacy_facts(sites))]


def test_the_largest_figures_of_any_training_hospital_are_told() -> None:
    facts = privacy_facts({"a": site(), "b": site(epsilon=5.0), "c": site(delta=1e-4), "d": {"role": "held_out"}})
    assert facts.pair == "ε = 5, δ = 1×10⁻⁴"
    assert facts.claims
    assert headings({"a": site()}) == []


@pytest.mark.parametrize(("changes", "heading"), [
    ({"epsilon": math.inf}, "No limit on what the model reveals"),
    ({"epsilon": 8.01, "epsilon_rdp": 9.0}, "Budget passed"),
    ({"epsilon_rdp": 3.0}, "The accountants disagree"),
    ({"noise": "simulated"}, "Simulated noise: not secure"),
    ({"noise": "something new"}, "Simulated noise: not secure"),
    ({"epsilon": None}, "Some hospitals have no privacy figure"),
])
def test_every_doubt_has_its_band(changes: dict[str, Any], heading: str) -> None:
    assert heading in headings({"a": site(), "b": site(**changes)})


def test_no_figure_at_all_is_no_protection() -> None:
    sites = {"a": {"role": "train", "privacy": None}}
    assert headings(sites) == ["No privacy protection"]
    assert privacy_phrase(privacy_facts(sites)) == "no privacy protection was used"
    assert site_privacy("a", None) is None


def test_mixed_units_are_told_as_the_weaker_one() -> None:
    facts = privacy_facts({"a": site(), "b": site(unit="record")})
    assert privacy_phrase(facts).startswith("each scan (not each patient) is protected by")


@pytest.mark.parametrize(("changes", "said"), [
    ({}, "patient"),
    ({"unit": "record"}, "record; for a whole patient unknown: nobody said how many scans one has"),
    (
        {"unit": "record", "scans_per_patient": 4, "patient_epsilon": 31.551},
        "record; for a whole patient (up to 4 scans) ε = 31.56",
    ),
    ({"unit": "record", "scans_per_patient": 1, "patient_epsilon": 4.0}, "record; for a whole patient (one scan) ε = 4"),
    (
        {"unit": "record", "scans_per_patient": 900, "patient_epsilon": None},
        "record; for a whole patient (up to 900 scans) no limit",
    ),
])
def test_a_claim_for_scans_is_read_for_patients(changes: dict[str, Any], said: str) -> None:
    spent = site(**changes)["privacy"]
    assert unit_words(spent) == said
    row = site_privacy("a", spent)
    assert row is not None
    assert ("Unit", said) in row.cells
