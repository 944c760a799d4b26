"""What one training round costs (`Charge`) and what a hospital allows in all (`Budget`). Standard library only."""

import math
from dataclasses import dataclass

from fedimaging.errors import PrivacyError, bad_value, unknown_name

UNITS = ("patient", "record")
SAMPLINGS = ("poisson",)
_MOST_DAYS = 366_000  # a thousand years: dates stay within what a calendar can count


@dataclass(frozen=True)
class Charge:
    """`steps` noisy sums of clipped unit gradients: the one fact from which every epsilon is computed.

    Neighbouring data sets differ by adding or removing one `unit`; each step draws every unit independently with
    probability `sample_rate` and adds N(0, (noise_multiplier * clip_norm)^2) to the sum, also when nothing was drawn.

    noise_multiplier: standard deviation of the noise over the clip norm; 0 means no noise, hence no guarantee.
    sample_rate:      in (0, 1]; 1 is a release without sampling, e.g. a noised count.
    steps:            whole number of noisy sums, 0 allowed.
    unit:             "patient" or "record": what was sampled and clipped as a whole.
    sampling:         only "poisson". Shuffled batches have no amplification that this accounting may claim.
    scans_per_patient: for unit "record", an upper bound on the records of one patient; needed before the charge can
                      be read at patient level (see `group.py`). None: not known.

    Raises PrivacyError for values that cannot be accounted for.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    unit: str
    sampling: str = "poisson"
    scans_per_patient: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise PrivacyError(unknown_name("charge.unit", self.unit, UNITS))
        if self.sampling not in SAMPLINGS:
            raise PrivacyError(
                bad_value(
                    "charge.sampling",
                    self.sampling,
                    "cannot be charged as Poisson sampling",
                    "draw every unit independently with the study's sample_rate; what other samplings support is in "
                    "fedimaging.privacy.other_sampling",
                )
            )
        _check_number("charge.noise_multiplier", self.noise_multiplier, low=0.0, high=math.inf)
        _check_number("charge.sample_rate", self.sample_rate, low=0.0, high=1.0)
        if self.sample_rate == 0:
            raise PrivacyError(bad_value("charge.sample_rate", self.sample_rate, "must be above 0 and at most 1"))
        _check_whole("charge.steps", self.steps, least=0)
        if self.scans_per_patient is not None:
            _check_whole("charge.scans_per_patient", self.scans_per_patient, least=1)


@dataclass(frozen=True)
class Budget:
    """The most that may be learnt about one unit of this hospital: (epsilon, delta), over all studies together.

    epsilon: above 0; infinity means that the hospital sets no limit (a simulation without privacy).
    delta:   in (0, 1), below one over the number of patients.
    days:    None: for ever. Otherwise in any so many days that follow one another; at most 366,000.
    """

    epsilon: float
    delta: float
    days: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.epsilon, int | float) or isinstance(self.epsilon, bool) or not self.epsilon > 0:
            raise PrivacyError(bad_value("budget.epsilon", self.epsilon, "must be a number above 0"))
        _check_number("budget.delta", self.delta, low=0.0, high=1.0)
        if self.delta in (0, 1):
            raise PrivacyError(bad_value("budget.delta", self.delta, "must lie strictly between 0 and 1", "use about 1e-5"))
        if self.days is not None:
            _check_whole("budget.days", self.days, least=1, most=_MOST_DAYS)


def _check_number(name: str, value: object, *, low: float, high: float) -> None:
    """A finite real number in [low, high]; True is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and low <= value <= high):
        rule = f"must be a number of at least {low:g}" + ("" if math.isinf(high) else f" and at most {high:g}")
        raise PrivacyError(bad_value(name, value, rule))


def _check_whole(name: str, value: object, *, least: int, most: int | None = None) -> None:
    """A whole number of at least `least` and at most `most`; True is not a number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        rule = f"must be a whole number of at least {least}" + ("" if most is None else f" and at most {most}")
        raise PrivacyError(bad_value(name, value, rule))
