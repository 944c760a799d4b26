"""What a report says of hospital-level privacy (`federation.site_privacy`): its figure, and how little it means for few."""

from pathlib import Path
from typing import Any

from fedimaging.federated.site_privacy import PrivateMeans
from fedimaging.privacy.noise import NoiseSource, SecureNoise, SimulatedNoise
from fedimaging.runs.report_text import count_text, delta_text, epsilon_text
from fedimaging.study.schema import Study


def private_means(study: Study, folder: Path, *, simulated: bool, arm: str = "federated") -> PrivateMeans | None:
    """The noised means of a run in this folder; None where the study has no site_privacy. `arm` keys simulated noise."""
    spec = study.federation.site_privacy
    if spec is None:
        return None

    def noise_for(round: int) -> NoiseSource:
        whose = "server's mean" if arm == "federated" else f"server's mean/{arm}"
        return SimulatedNoise(study.seed, whose, round) if simulated else SecureNoise()

    return PrivateMeans(spec, folder, noise_for)


def site_privacy_facts(study: Study, means: PrivateMeans | None, hospitals: int) -> dict[str, Any] | None:
    """The block `site_privacy` of report.json, for a federation of so many training hospitals."""
    spec = study.federation.site_privacy
    if spec is None or means is None:
        return None
    asked = min(study.federation.sites_per_round or hospitals, hospitals)
    share = spec.noise_multiplier / asked
    return {
        "epsilon": means.epsilon, "delta": spec.delta, "releases": means.releases, "clip_norm": spec.clip_norm,
        "noise_multiplier": spec.noise_multiplier, "noise": means.noise, "hospitals_a_round": asked, "noise_to_clip": share,
        "words": (
            f"Hospital-level, at the server: (ε = {epsilon_text(means.epsilon)}, δ = {delta_text(spec.delta)}) for all that one "
            f"hospital contributed over {count_text(means.releases, 'round')}, against the other hospitals and the public. It "
            "does not hold against the server, which sees every update, nor for evaluations, nor does it hide which hospitals "
            "took part. No amplification by cohorts is claimed. "
            f"With {count_text(asked, 'hospital')} a round it is mostly formal: the noise in each number of the mean is "
            f"{share:.2g} of the clip norm, while the whole mean without noise is at most one clip norm long."
            + (" The noise was simulated: whoever knows the seed can take it away." if means.noise == "simulated" else "")
        ),
    }  # fmt: skip
