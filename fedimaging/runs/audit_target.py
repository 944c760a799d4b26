"""A finished run, opened to be attacked: its study, data, hospitals, final model, and what every ledger says was spent."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.errors import RunError
from fedimaging.privacy.accounting import Steps
from fedimaging.privacy.budget import Charge
from fedimaging.privacy.ceilings import tpr_ceiling_of_steps
from fedimaging.privacy.ledger import Ledger
from fedimaging.privacy.ledger_verify import head_path
from fedimaging.runs import hospitals
from fedimaging.runs.report import read_report
from fedimaging.site.simulated import SimulatedFederation, workbench_of
from fedimaging.study.load import load
from fedimaging.study.schema import Study
from fedimaging.training.workbench import SiteRecords, Workbench


@dataclass(frozen=True)
class Target:
    """One run under attack.

    `federation`: made anew from the study (engine and layout as the run chose them), for re-runs in other folders.
    `bench`: the auditor's own, so that no hospital's network is touched. `weights` (P,): the final model, as it travels.
    `charges`: of each training hospital by its ledger; empty without privacy.
    """

    run: Path
    study: Study
    report: Mapping[str, Any]
    dataset: Dataset
    federation: SimulatedFederation
    bench: Workbench
    features: np.ndarray | None
    weights: np.ndarray
    workers: int
    charges: Mapping[str, tuple[Charge, ...]]

    @property
    def folder(self) -> Path:
        """Where the audit works."""
        return self.run / "audit"

    @property
    def unit(self) -> str:
        """What the study protects; the patient where it protects nobody."""
        return self.study.privacy.unit if self.study.privacy else "patient"

    @property
    def key(self) -> dict[str, Any]:
        """What an intermediate result of an audit depends on, beside its own options."""
        weights = hashlib.sha256(self.weights.tobytes()).hexdigest()
        return {"study": self.study.fingerprint, "data": self.dataset.fingerprint, "weights": weights}

    def seed(self, purpose: str) -> int:
        """A number that follows from the run and the purpose alone."""
        digest = hashlib.sha256(f"fedimaging audit 1\n{self.study.fingerprint}\n{purpose}".encode()).digest()
        return int.from_bytes(digest[:6], "little")

    def full(self, shared: np.ndarray) -> np.ndarray:
        """A vector that travels (P,) as a whole network (V,); what stays at the hospitals is as it was first made."""
        vector: np.ndarray = self.bench.initial.copy()
        vector[self.bench.shared] = shared
        return vector

    def records(self, rows: np.ndarray) -> SiteRecords:
        """These rows of the data."""
        return SiteRecords(self.dataset, rows, self.features)

    def largest_sites(self) -> list[str]:
        """Training hospitals, the one with most patients first."""
        sizes = {}
        for name in self.federation.train_names:
            rows = self.federation.train_site == self.federation.names.index(name)
            sizes[name] = len(np.unique(self.dataset.patient_ids[rows]))
        return sorted(sizes, key=lambda name: (-sizes[name], name))


def open_target(run: Path) -> Target:
    """Open a folder of `fedimaging simulate`. Nothing in it is changed.

    Errors: RunError for a folder that is none, an unfinished run, one of another version or other data; DataError.
    """
    run = run.resolve()
    for name, why in (
        ("report.json", "is no finished run: let `fedimaging simulate` end, or name its folder"),
        ("federation.json", "is no run of `fedimaging simulate`: only a simulation can be attacked, not a real federation"),
        ("run.json", "is no run of `fedimaging simulate` (a baseline?): name the run's own folder"),
    ):
        if not (run / name).is_file():
            raise RunError(f"{str(run)!r} {why} ({name} is missing).")
    report, study = read_report(run), load(run / "study.yaml")
    if report.get("fingerprint") != study.fingerprint:
        raise RunError(f"the study in {str(run)!r} is not the one of its report; audit it with the version that ran it.")
    if study.privacy is not None and study.privacy.secure_sum != "none":
        raise RunError(
            f"the run in {str(run)!r} assumed an ideal secure sum, so nothing is claimed of the single updates that an audit "
            "attacks; audit the study without privacy.secure_sum."
        )
    dataset = hospitals.load_data(study)
    if dataset.fingerprint != report.get("data_fingerprint"):
        raise RunError(f"the data changed since the run in {str(run)!r}; restore them, or run the study again.")
    try:
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
        workers, engine = int(facts["workers"]), str(facts["engine"])
        kept = SimulatedFederation.open(run)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"the run in {str(run)!r} cannot be read ({error!r}); run the study again.") from None
    federation = hospitals.make_federation(study, dataset, run / "audit", kept.device)
    if not np.array_equal(federation.train_site, kept.train_site) or federation.names != kept.names:
        raise RunError(f"the hospitals in {str(run)!r} are not those its study gives; run the study again with this version.")
    plans = {name: replace(plan, engine=engine) for name, plan in federation.plans.items()}
    federation = replace(federation, plans=plans, memory_format=kept.memory_format)
    bench = workbench_of(study, kept.device)
    charges = {name: _charges(run, kept, name) for name in federation.train_names} if federation.plans else {}
    return Target(
        run, study, report, dataset, federation, bench, bench.features_of(dataset), _final_weights(run, bench), workers, charges
    )


def ceiling(guarantees: tuple[Steps, ...], fpr: float) -> float:
    """The greatest true positive rate under the weakest of these guarantees: for patients of several hospitals."""
    return max(_ceiling(each, min(1.0, fpr)) for each in set(guarantees))


_ceiling = lru_cache(maxsize=4096)(tpr_ceiling_of_steps)


def _charges(run: Path, federation: SimulatedFederation, name: str) -> tuple[Charge, ...]:
    """What a copy of the hospital's ledger says: reading the ledger itself could touch its files."""
    source = federation.site_folder(name) / "ledger.sqlite"
    copy = run / "audit" / "ledgers" / source.parent.name / source.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, copy)
        shutil.copyfile(head_path(source), head_path(copy))
    except OSError as error:
        raise RunError(f"the ledger of {name!r} cannot be read: {error.strerror}; its guarantee is unknown.") from None
    return tuple(Ledger(copy).charges())


def _final_weights(run: Path, bench: Workbench) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = run / "weights.safetensors"
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{str(path)!r} cannot be read ({error}); run the study again.") from None
    wanted = bench.named_arrays(bench.initial)
    if {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in wanted.items()}:
        raise RunError(f"{str(path)!r} holds another network than the study's; run the study again.")
    whole = np.concatenate([arrays[name].reshape(-1) for name in wanted]).astype(np.float32)
    return np.asarray(whole[bench.shared])
