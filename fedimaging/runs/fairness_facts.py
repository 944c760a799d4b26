"""What a report says of weights that follow the hospitals' evaluations: the block `fairness` of report.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedimaging.study.schema import Study


def fairness_facts(
    study: Study, public: Mapping[str, float], rounds: Sequence[Mapping[str, Any]], *, on_validation: bool | None
) -> dict[str, Any] | None:
    """None where weights are public constants.

    public: each training hospital's public weight. on_validation: the evaluations that steer are on patients who neither train
    nor test; None: each hospital knows for itself. `shares`: of each hospital in the whole weight, by the public weights and in
    the last round.
    """
    spec = study.federation.fairness
    if spec.kind == "none":
        return None
    last: Mapping[str, float] = next((row["weights"] for row in reversed(rounds) if row.get("weights")), {})
    return {
        "kind": spec.kind, "on_validation": on_validation, "words": _words(study, on_validation),
        "shares": {name: {"public": _share(public, name), "last": _share(last, name)} for name in sorted(public)},
    }


def steering_words(study: Study) -> str:
    """What differential privacy does not cover because the weights follow evaluations; empty where it covers all, or weights
    are constants. A hospital's own mode is its own policy's: without one at hand, the worst is said."""
    if study.federation.fairness.kind == "none":
        return ""
    return (
        "Patients whose evaluations steer the federation (federation.fairness): where a hospital's evaluations leave without "
        "noise, the hospitals' weights, and through them the final model, depend on these patients without an ε."
    )


def _words(study: Study, on_validation: bool | None) -> str:
    spec = study.federation.fairness
    how = {
        "q_fair": f"Each hospital counts by its public weight times its risk to the power {spec.q:g} (q-FedAvg)",
        "minimax": f"After each evaluation the weight of hospitals with the greater risk rises (minimax, step {spec.step:g})",
    }[spec.kind]
    limits = f"and never more than {spec.most:g} times its public weight or less than one in {spec.most:g}"
    return f"{how}, {limits}. The risk is what each hospital's policy let leave of an evaluation on {_WHOM[on_validation]}"


_WHOM = {
    True: "validation patients, who neither trained nor test; the course of the training, but for its last point, is measured on "
          "them.",
    False: "its test patients, for the study has no validation patients: the test results of the hospitals that trained are "
           "therefore a little too good, those of held-out hospitals are not.",
    None: "validation patients where it has some, and on its test patients where it has none, whose results are then a little "
          "too good.",
}


def _share(weights: Mapping[str, float], name: str) -> float | None:
    total = sum(weights.values())
    return round(weights[name] / total, 6) if name in weights and total else None
