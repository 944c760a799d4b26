"""What a model of one's own gives each hospital: the block `personalised` of report.json."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedimaging.results import Interval, SiteEvaluation
from fedimaging.runs.assemble import primary_metric
from fedimaging.runs.metric_tables import metric_table
from fedimaging.study.schema import Study
from fedimaging.training.bootstrap import Statistic, interval
from fedimaging.training.metrics import classification_statistics
from fedimaging.training.segmentation_metrics import segmentation_statistics

_LOWER_IS_BETTER = ("brier", "hd95_mm")


def personal_kind(study: Study) -> str:
    """How the hospitals' models differ: `fine_tune`, `ditto`, `local_norm`, `local_head`, or `none`."""
    if study.personalisation.kind != "none":
        return study.personalisation.kind
    local = study.federation.local_parameters
    return "none" if local == "none" else f"local_{local}"


def personal_words(study: Study) -> str:
    """What an own model is, who may have it, and what its figures do not protect."""
    kind, spec = personal_kind(study), study.personalisation
    if kind.startswith("local_"):
        part = {"local_norm": "normalisation layers", "local_head": "last layer"}[kind]
        private = "" if study.privacy is None else ", trained with the same privacy as the shared rest"
        return f"Each hospital keeps its own {part}{private}; they never leave it."
    how = {
        "fine_tune": f"After the federation each hospital fitted the final model to its own patients, {spec.steps} steps",
        "ditto": f"Beside every round each hospital trained its own model, {spec.steps} steps, pulled to the shared one (Ditto)",
    }[kind]
    leak = "" if study.privacy is None else (
        " So the figures of this section carry no ε, though the shared model has one: they left the hospitals without noise. "
        "Training alone is with the study's privacy here; without, which is a hospital's other choice inside its walls, it may "
        "be better."
    )
    return f"{how}. That is done without differential privacy, and the own model never leaves its hospital.{leak}"


def personal_facts(
    study: Study, shared: Sequence[SiteEvaluation], own: Sequence[SiteEvaluation], alone: Sequence[SiteEvaluation]
) -> dict[str, Any] | None:
    """None where the study has nothing personal, or nothing to set it beside.

    shared, own, alone: evaluations at the training hospitals of the shared model, of each hospital's own, and of the model that
    it trained alone (empty without baselines). `sites`: hospital -> `test` of its own model, `over_shared` and `over_alone`, the
    gain by the primary metric, above 0 where the own model is better, with a 95 % paired interval over patients: each resample
    scores the same patients by both models. `mean`: of the hospitals' gains, each hospital counting one. Without scores a gain
    has no interval. `missing`: hospitals that let nothing of their own model leave.
    """
    if personal_kind(study) == "none" or not own:
        return None
    others = {"over_shared": {e.site: e for e in shared}, "over_alone": {e.site: e for e in alone}}
    pairs = {
        name: [(e, found[e.site]) for e in own if e.site in found] for name, found in others.items()
    }
    gains = {name: {pair[0].site: _gain(study, [pair]) for pair in found} for name, found in pairs.items()}
    return {
        "kind": personal_kind(study), "words": personal_words(study), "metric": primary_metric(study),
        "sites": {
            e.site: {"test": metric_table(study, [e]), **{name: _json(gains[name].get(e.site)) for name in gains}} for e in own
        },
        "mean": {name: _json(_gain(study, found) if found else None) for name, found in pairs.items()},
        "missing": sorted({e.site for e in shared} - {e.site for e in own}),
    }


def _json(gain: Interval | None) -> dict[str, Any] | None:
    return None if gain is None else gain.as_json()


def _gain(study: Study, pairs: Sequence[tuple[SiteEvaluation, SiteEvaluation]]) -> Interval:
    """The mean over these hospitals of the first's primary metric above the second's; where it is not defined at a hospital,
    that one is left out."""
    metric = primary_metric(study)
    sign = -1.0 if metric.startswith(_LOWER_IS_BETTER) else 1.0
    if not all(e.predictions for pair in pairs for e in pair):
        apart = [sign * (a.metrics.get(metric, np.nan) - b.metrics.get(metric, np.nan)) for a, b in pairs]
        known = [gain for gain in apart if np.isfinite(gain)]
        patients = sum(a.n_patients for a, _ in pairs)
        return Interval(float(np.mean(known)) if known else np.nan, np.nan, np.nan, patients)
    edges = np.cumsum([0, *(len(a.predictions["patient"]) for a, _ in pairs)])
    differences = [
        (slice(first, last), _difference(_statistic(study, a), _statistic(study, b), sign))
        for (a, b), first, last in zip(pairs, edges[:-1], edges[1:], strict=True)
    ]
    everybody = np.ones((1, edges[-1]))
    defined = [(part, one) for part, one in differences if np.isfinite(one(everybody[:, part])[0])]

    def mean(weights_RS: np.ndarray) -> np.ndarray:
        if not defined:
            return np.full(len(weights_RS), np.nan)
        return np.mean([one(weights_RS[:, part]) for part, one in defined], axis=0)

    names = np.concatenate([np.char.add(f"{a.site}/", a.predictions["patient"].astype(str)) for a, _ in pairs])
    return interval(float(mean(everybody)[0]), mean, names, resamples=study.evaluation.resamples, seed=study.seed)


def _difference(own: Statistic, other: Statistic, sign: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weights_RS: sign * (own(weights_RS) - other(weights_RS))


def _statistic(study: Study, evaluation: SiteEvaluation) -> Statistic:
    arrays = {name: array for name, array in evaluation.predictions.items() if name != "patient"}
    if study.task.kind == "segmentation":
        return segmentation_statistics(arrays)[primary_metric(study)]
    return classification_statistics(arrays["scores"], arrays["labels"], study.task.kind)[primary_metric(study)]
