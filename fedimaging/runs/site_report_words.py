"""What the privacy officer's page says in sentences: codes of refusal, what is protected, from whom, and what is not."""

from fedimaging.runs.report_text import delta_text, epsilon_text, likelihood_factor_text
from fedimaging.site.policy import SitePolicy
from fedimaging.site.record import Left, Record

EVALUATIONS = {
    "metrics": "evaluation: exact metrics", "coarsened": "evaluation: rounded metrics",
    "noised": "evaluation: counts with noise", "scores": "evaluation: scores of every scan",
    "calibration noised": "calibration: sums with noise", "calibration exact": "calibration: exact sums",
    "own_metrics": "evaluation of the hospital's own model, which has no privacy: exact metrics",
    "own_coarsened": "evaluation of the hospital's own model, which has no privacy: rounded metrics",
    "own_scores": "evaluation of the hospital's own model, which has no privacy: scores of every scan",
}

CODES = {
    "study_not_approved": "a study that is not approved here, or not any more",
    "against_policy": "the study is against the hospital's policy",
    "outside_hours": "asked to train outside the hospital's hours",
    "disk_full": "asked while the hospital's disk was full",
    "budget_exceeded": "the round would have passed the privacy budget",
    "replayed_round": "a round that was answered already, asked again with other weights",
    "wrong_round": "a round that the study does not have",
    "wrong_shape": "numbers that are not those of the study's model",
    "weights_not_finite": "weights that are not numbers",
    "bad_message": "a message that is not of the agreed form",
    "server_untrusted": "somebody answered who has no certificate of the federation's authority; nothing was said to them",
    "message_too_large": "a message larger than any approved study needs",
    "no_training_data": "asked to train, but nobody here may be trained on",
    "evaluation_not_released": "asked for an evaluation that the policy keeps inside",
    "calibration_not_released": "asked for a calibration that the policy keeps inside, or that the study does not have",
    "update_not_finite": "training gave numbers that are not finite; nothing was sent",
    "update_too_large": "training gave an update above the policy's bound; nothing was sent",
    "privacy": "a privacy claim that cannot be kept",
    "ledger": "the ledger is not in order",
    "data": "the manifest or an image cannot be used as it is",
    "site": "the hospital's settings, policy or opt-out list cannot be read",
    "stopping": "the node was told to stop; the round goes on later",
    "run": "the disk is full, or a file cannot be written",
    "study": "the study cannot be used on this machine",
}


def unaccounted(record: Record) -> list[Left]:
    """What left this hospital without noise, so that epsilon says nothing of it: evaluations and calibrations, of the
    patients tested on or calibrated on."""
    return [one for one in record.left if one.what != "update" and one.how != "noised"]


def protected(record: Record, policy: SitePolicy, *, private: bool) -> list[tuple[str, str]]:
    """(label, sentence): what the figures promise, to whom, against whom."""
    if not private:
        return [("What is protected", "Not the patients of a study that trained without differential privacy; see above.")]
    total = record.spent[0] if record.spent else None
    facts = [
        ("What is protected", "Each patient, with all scans of theirs at this hospital: whether they took part at all, and "
                              "anything about them beyond the figures that this page lists as released without noise."),
        ("From whom", "The federation's server and its operator, the other hospitals, and everybody who ever receives a "
                      "model that was trained with this hospital. Only this hospital itself is trusted."),
        ("How", "Training draws patients at random, limits how far one patient can move the model, and adds noise before "
                "anything leaves. Every such step is booked in the ledger before the first patient is read."),
    ]
    if total is not None and total.epsilon < float("inf"):
        facts.append(("How much, at most", (
            f"ε = {epsilon_text(total.epsilon)} at δ = {delta_text(total.budget.delta)} so far, all studies together; the "
            f"policy ends it at {policy.in_total.epsilon:g}. Take any one patient away, and the chance of everything that was "
            f"or will be concluded from what left {'with noise ' if unaccounted(record) else ''}changes by a factor of at most "
            f"{likelihood_factor_text(total.epsilon)}, plus at most δ. It is a worst case: it holds against every attack, and "
            "whatever else an attacker knows."
        )))
    return facts


def not_protected(policy: SitePolicy, *, private: bool) -> list[str]:
    """What the promise does not cover."""
    texts = [
        "That this hospital takes part, how many patients it trains on, and how long its training takes: these can be seen.",
        "Facts about groups. A model may learn that a disease is more frequent in old age; it is meant to.",
        "A patient who is treated at several hospitals of the federation: the guarantees of the hospitals add up.",
        "Whoever can read this computer: images, ledger and keys lie on it as they do in any system of the hospital.",
        "A wrong opt-out list or manifest: who is not on the list is used, and a patient under two ids counts as two.",
    ]
    evaluations = {
        "coarsened": "Test patients: rounded metrics of them leave, without noise. Rounding hides small differences, but is no "
                     "guarantee.",
        "metrics": "Test patients: exact metrics of them, and how many there are, leave without noise.",
        "scores": "Test patients: a score of every scan leaves.",
    }
    if policy.release_evaluation in evaluations:
        texts.insert(0, evaluations[policy.release_evaluation])
    if policy.release_calibration == "exact":
        texts.insert(0, "Validation patients: exact sums over them leave for a study's calibration, without noise.")
    if policy.release_groups == "metrics":
        texts.insert(0, f"Groups of test patients in which each answer has {policy.minimum_group} patients or more: exact "
                        "metrics of them leave, without noise.")
    if not private:
        texts.insert(0, "Training patients of a study without differential privacy: a model can give away what it learnt from.")
    return texts
