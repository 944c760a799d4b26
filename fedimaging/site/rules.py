"""A study against a hospital's policy: every reason to refuse it, in words for the hospital's own people.

The same function is asked when a person approves the study and again before every round, so that a policy that was
made stricter holds from the next round on.
"""

from collections.abc import Iterator

from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.site.policy import SitePolicy
from fedimaging.study.schema import Study


def against(policy: SitePolicy, study: Study, plan: DpPlan | None, training_patients: int | None) -> list[str]:
    """Every reason; none where the study is within the policy. Budgets and hours are looked at where they are spent.

    plan: the hospital's, None where it trains without privacy. training_patients: how many patients train here, None for
    a hospital that only evaluates.
    """
    reasons = [*_of_the_study(policy, study)]
    if training_patients is not None:
        reasons += _of_training(policy, study, plan, training_patients)
    return reasons


def _of_the_study(policy: SitePolicy, study: Study) -> Iterator[str]:
    if policy.tasks is not None and study.task.kind not in policy.tasks:
        yield f"task.kind={study.task.kind} is none of the tasks allowed here: {', '.join(policy.tasks)}"
    if policy.models is not None and study.model.name not in policy.models:
        yield f"model.name={study.model.name} is none of the models allowed here: {', '.join(policy.models)}"
    federation = study.federation
    yield from _above("federation.rounds", federation.rounds, policy.maximum_rounds, "maximum_rounds")
    if federation.minimum_replies < policy.minimum_hospitals:
        yield (
            f"federation.minimum_replies={federation.minimum_replies} is below minimum_hospitals={policy.minimum_hospitals}: "
            "with fewer hospitals in a round an update could be told apart"
        )


def _of_training(policy: SitePolicy, study: Study, plan: DpPlan | None, patients: int) -> Iterator[str]:
    if patients < policy.minimum_patients:
        yield f"{patients} patients train here, fewer than minimum_patients={policy.minimum_patients}"
    if study.personalisation.kind != "none":
        yield from _above("personalisation.steps", study.personalisation.steps, policy.maximum_steps, "maximum_steps")
    if plan is None:
        if not policy.without_privacy:
            yield "the study trains without differential privacy, and without_privacy is false here"
        yield from _above("training.local_epochs", study.training.local_epochs, policy.maximum_epochs, "maximum_epochs")
        yield from _above("training.local_steps", study.training.local_steps, policy.maximum_steps, "maximum_steps")
        return
    if policy.unit == "patient" and plan.unit != "patient":
        yield f"privacy.unit={plan.unit} protects single scans; here unit must be patient"
    if plan.delta * patients >= 1:
        yield f"delta={plan.delta:g} of the approved plan is not below one over the {patients} patients; approve it again"
    if plan.noise_multiplier < policy.minimum_noise_multiplier:
        yield (
            f"the noise multiplier {plan.noise_multiplier:.4g} is below minimum_noise_multiplier="
            f"{policy.minimum_noise_multiplier:g}"
        )
    epochs = round(plan.steps_per_round * plan.sample_rate, 6)
    yield from _above("epochs in a round", epochs, policy.maximum_epochs, "maximum_epochs")
    yield from _above("steps in a round", plan.steps_per_round, policy.maximum_steps, "maximum_steps")


def _above(name: str, value: float | None, most: float | None, rule: str) -> Iterator[str]:
    if value is not None and most is not None and value > most:
        yield f"{name}={value:g} is above {rule}={most:g}"
