"""A real hospital, opened from its folder for one approved study: what `simulated.py` is for simulations.

Before every message the hospital's own files are looked at again. As long as none of them changed the same `Site` is given
back, with its network and data in memory; a change of policy, consent, opt-out list, manifest or approvals holds from the
next message on.
"""

import re
from collections.abc import Callable
from pathlib import Path

from fedimaging.errors import FedimagingError, SiteRefusal
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.ledger import Ledger
from fedimaging.privacy.noise import NoiseSource, SecureNoise, SimulatedNoise
from fedimaging.site.approvals import approved, newest
from fedimaging.site.folder import SiteFolder, stamp_of
from fedimaging.site.own_data import prepare_own
from fedimaging.site.policy import SitePolicy
from fedimaging.site.simulated import shared_workbench
from fedimaging.site.site import Site
from fedimaging.study.schema import Study

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_BESIDE_WEIGHTS = 2**20  # bytes of a message that are not weights: names, and how they are packed
_IN_MEMORY = 2  # studies whose network and data are kept

_Stamps = tuple[tuple[int, ...] | None, ...]


_opened: dict[Path, dict[str, tuple[_Stamps, Site]]] = {}  # by folder, then by study, the one used last at the end


def open_hospital_site(folder: SiteFolder, fingerprint: str, *, stop: Callable[[], bool] = lambda: False) -> Site:
    """The hospital, ready for this study. `stop`: see `Site`; asked after every training step.

    Errors: SiteRefusal("study_not_approved") for a study that is not approved here, or not any more; whatever stands in
    the way of opening it. Each is in the audit log.
    """
    opened = _opened.setdefault(folder.path, {})
    known = _FINGERPRINT.fullmatch(fingerprint) is not None
    try:
        if not known:
            raise SiteRefusal("study_not_approved", "asked for something that is no study's fingerprint.")
        stamps = _stamps(folder, fingerprint)
        kept, site = opened.pop(fingerprint, (None, None))
        if site is None or kept != stamps:
            site = _open(folder, fingerprint)
    except Exception as error:
        code = error.code if isinstance(error, FedimagingError) else "error"
        folder.log.write("refused", study=fingerprint if known else "", code=code)
        raise
    site.stop = stop
    opened[fingerprint] = (stamps, site)
    if len(opened) > _IN_MEMORY:
        del opened[next(iter(opened))]
    return site


def largest_message(folder: SiteFolder) -> int:
    """Bytes that a message of any approved study can have. Error: LedgerError where the record of approvals was altered."""
    sizes = [approval.parameters for approval in newest(folder).values() if approval.approved]
    return 4 * max(sizes, default=0) + _BESIDE_WEIGHTS


def _stamps(folder: SiteFolder, fingerprint: str) -> _Stamps:
    files = (
        folder.settings_file, folder.policy_file, folder.opt_out_file, folder.approvals_file, folder.study_file(fingerprint),
        folder.manifest,
    )
    return tuple(stamp_of(path) for path in files)


def _open(folder: SiteFolder, fingerprint: str) -> Site:
    approval, study = approved(folder, fingerprint)
    policy, name = folder.policy, folder.settings.name
    bench = shared_workbench(study, folder.settings.device)
    data = prepare_own(folder, study).seen_by(bench)
    total, *others = policy.budgets()
    return Site(
        name=name,
        folder=folder.path,
        study=study,
        policy=policy,
        bench=bench,
        train_records=data.training,
        test_records=data.testing,
        validation_records=data.validation,
        plan=None if approval.plan is None else DpPlan(**approval.plan),
        budget=total,
        more_budgets=tuple(others),
        noise_for=noise_of(policy, study, name),
        open_ledger=lambda path: Ledger(path, folder.ledger_head),
        state=folder.state_folder(fingerprint),
        one_question=True,
    )


def noise_of(policy: SitePolicy, study: Study, name: str) -> Callable[[int], NoiseSource]:
    """Round -> its noise: secure, unless the policy's test mode asks for the noise of a simulation of the same study."""
    if policy.allow_simulated_noise:
        return lambda round: SimulatedNoise(study.seed, f"federated/{name}", round)
    return lambda round: SecureNoise()
