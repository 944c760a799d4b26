"""What a report says about privacy: the weakest hospital speaks for all, and doubt is never read as protection."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedimaging.runs.charts import budget_bar
from fedimaging.runs.report_text import count_text, delta_text, epsilon_text, humanise, likelihood_factor_text

UNITS = {
    "patient": "each patient, with all of their scans at that hospital",
    "record": "each single scan; a patient with several scans is protected less than the figures say",
}
_EACH = {"patient": "each patient", "record": "each scan (not each patient)"}


@dataclass(frozen=True)
class PrivacyFacts:
    """The claim of a whole run. `epsilon` and `delta` are the largest of any training hospital. `kept_by_hospitals`: the
    study was private, and what was spent stands in ledgers that the maker of the report does not see."""

    accounted: tuple[str, ...]
    unaccounted: tuple[str, ...]
    epsilon: float
    delta: float
    units: tuple[str, ...]
    simulated: tuple[str, ...]
    over_budget: tuple[str, ...]
    disagreeing: tuple[str, ...]
    kept_by_hospitals: bool = False

    @property
    def claims(self) -> bool:
        """True only if every training hospital has a finite, accounted epsilon."""
        return bool(self.accounted) and not self.unaccounted and math.isfinite(self.epsilon)

    @property
    def pair(self) -> str:
        """`ε = 7.98, δ = 1×10⁻⁴`."""
        return f"ε = {epsilon_text(self.epsilon)}, δ = {delta_text(self.delta)}"

    @property
    def each(self) -> str:
        """Who the claim is about, for the middle of a sentence; mixed units are told as the weaker one."""
        return _EACH["patient" if self.units == ("patient",) else "record"]

    @property
    def factor(self) -> str:
        """e to the largest epsilon, in words."""
        return likelihood_factor_text(self.epsilon)


@dataclass(frozen=True)
class Band:
    """A note across the page. `tone`: `danger`, `warning` or `calm`."""

    tone: str
    heading: str
    text: str


def privacy_facts(sites: Mapping[str, Mapping[str, Any]], *, kept_by_hospitals: bool = False) -> PrivacyFacts:
    """Gather the claim from the training hospitals' own figures; held-out hospitals spend nothing and are left out.

    kept_by_hospitals: the report says so of a private study that has no figures (`privacy.kept_by_hospitals`).
    """
    spent = {name: site.get("privacy") for name, site in sites.items() if site.get("role") != "held_out"}
    known = {name: one for name, one in spent.items() if one and one.get("epsilon") is not None}
    return PrivacyFacts(
        accounted=tuple(known),
        unaccounted=tuple(name for name in spent if name not in known),
        epsilon=max((one["epsilon"] for one in known.values()), default=math.inf),
        delta=max((one.get("delta") or math.nan for one in known.values()), default=math.nan),
        units=tuple(sorted({str(one.get("unit", "unknown")) for one in known.values()})),
        simulated=tuple(name for name, one in known.items() if not str(one.get("noise", "")).startswith("secure")),
        over_budget=tuple(name for name, one in known.items() if _passed(one)),
        disagreeing=tuple(name for name, one in known.items() if _below(one)),
        kept_by_hospitals=kept_by_hospitals and not known,
    )


def _passed(spent: Mapping[str, Any]) -> bool:
    budget = spent.get("budget_epsilon")
    return budget is not None and spent["epsilon"] > budget


def _below(spent: Mapping[str, Any]) -> bool:
    """RDP is a looser upper bound: clearly below the figure of record it shows that one of the two is wrong.

    The slack is for the rounding of the loss distribution, which is always upwards.
    """
    check = spent.get("epsilon_rdp")
    return check is not None and check < 0.99 * spent["epsilon"] - 0.02


def privacy_phrase(facts: PrivacyFacts) -> str:
    """The last part of the summary sentence."""
    if facts.kept_by_hospitals:
        return "each hospital keeps the account of its own patients’ privacy"
    if not facts.accounted:
        return "no privacy protection was used"
    if not facts.claims:
        return "not every hospital’s patients are protected"
    if facts.simulated:
        return f"the accounted protection of {facts.each} is ({facts.pair}) at their own hospital, with simulated noise"
    return f"{facts.each} is protected by ({facts.pair}) at their own hospital"


def privacy_bands(facts: PrivacyFacts) -> list[Band]:
    """Everything a reader must know before the first figure, gravest first."""
    if facts.kept_by_hospitals:
        return [Band("calm", "Privacy is accounted for at the hospitals", (
            "The study was trained with differential privacy. Each hospital set the noise from its own number of patients, "
            "charged every round to its own ledger before it read a patient, and told nobody what it spent. How strong the "
            "protection is, each hospital’s own report says; without these reports no figure can be claimed for this model."
        ))]
    if not facts.accounted:
        return [Band("danger", "No privacy protection", (
            "This model was trained without differential privacy. It may reveal who took part in the training and what "
            "their images show. Do not pass it on where the images themselves may not go."
        ))]
    bands = []
    if facts.unaccounted:
        bands.append(Band("danger", "Some hospitals have no privacy figure", (
            f"{', '.join(facts.unaccounted)}: trained, but without an accounted epsilon. Treat their patients as "
            "unprotected; the figures below are for the other hospitals only."
        )))
    if not math.isfinite(facts.epsilon):
        bands.append(Band("danger", "No limit on what the model reveals", (
            "At least one hospital's epsilon is infinite: its training added no noise, or too little to account for."
        )))
    if facts.over_budget:
        bands.append(Band("danger", "Budget passed", f"More was spent than allowed at {', '.join(facts.over_budget)}."))
    if facts.disagreeing:
        bands.append(Band("danger", "The accountants disagree", (
            f"{', '.join(facts.disagreeing)}: the cross-check (RDP), an upper bound, lies below the figure of record. "
            "One of them is wrong; do not rely on these figures."
        )))
    if facts.simulated:
        bands.append(Band("warning", "Simulated noise: not secure", (
            "The noise came from a generator that can be repeated from the seed, so that the run can be repeated. "
            "Whoever knows the seed can take the noise away again. The figures say what the same study would "
            "guarantee with the secure generator; they protect nobody in this run."
        )))
    return bands


@dataclass(frozen=True)
class SitePrivacy:
    """One hospital's row of the privacy table; `cells` are (column, text)."""

    name: str
    epsilon: str
    budget: str
    bar: Markup
    cells: tuple[tuple[str, str], ...]


def site_privacy(name: str, spent: Mapping[str, Any] | None) -> SitePrivacy | None:
    """The row of one hospital, or None without an accounted epsilon."""
    if not spent or spent.get("epsilon") is None:
        return None
    budget = spent.get("budget_epsilon")
    cells = (
        ("δ", delta_text(spent.get("delta"))),
        ("Unit", unit_words(spent)),
        ("Accountant", str(spent.get("accountant", "unknown"))),
        ("Cross-check (RDP)", "ε ≤ " + epsilon_text(spent["epsilon_rdp"]) if spent.get("epsilon_rdp") else "none"),
        ("Steps", steps_words(spent)),
        ("Noise multiplier", _figures(spent.get("noise_multiplier"))),
        ("Sample rate", _figures(spent.get("sample_rate"))),
        ("Noise generator", noise_words(str(spent.get("noise", "unknown")))),
    )
    bar = Markup("") if budget is None else budget_bar(spent["epsilon"], budget)
    allowed = "no budget" if budget is None else f"{budget:g}"
    return SitePrivacy(name, epsilon_text(spent["epsilon"]), allowed, bar, cells)


def steps_words(spent: Mapping[str, Any]) -> str:
    """How many noisy sums were charged, and how many of them were evaluations or calibrations."""
    steps = spent.get("steps")
    others = [(spent.get("evaluations") or 0, "noised evaluation"), (spent.get("calibrations") or 0, "noised calibration")]
    others = [(count, what) for count, what in others if count]
    if steps is None or not others:
        return count_text(steps)
    training = count_text(steps - sum(count for count, _ in others))
    return " and ".join([training, *(count_text(count, what) for count, what in others)])


def unit_words(spent: Mapping[str, Any]) -> str:
    """The unit, and for scans what the same spending means for a patient who has the most of them."""
    unit = str(spent.get("unit", "unknown"))
    if unit != "record":
        return unit
    most = spent.get("scans_per_patient")
    if most is None:
        return "record; for a whole patient unknown: nobody said how many scans one has"
    whole = spent.get("patient_epsilon")
    said = "no limit" if whole is None else f"ε = {epsilon_text(whole)}"
    return f"record; for a whole patient ({'one scan' if most == 1 else f'up to {most} scans'}) {said}"


def _figures(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def noise_words(noise: str) -> str:
    """The generator's name, and whether it may be trusted."""
    return f"{humanise(noise)}" if noise.startswith("secure") else f"{humanise(noise)} (not secure)"
