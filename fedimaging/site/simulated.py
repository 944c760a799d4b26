"""Hospitals of a simulation: opened from a run folder, by this process, a worker, or a Ray actor alike.

Each has its own folder with a ledger and an audit log, as a real one has; only its data and its noise differ: the data
is a set of rows of one store, the noise follows from the study's seed so that every carrier gives the same numbers.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.files import write_json, write_whole
from fedimaging.privacy.budget import Budget
from fedimaging.privacy.dpsgd import DpPlan
from fedimaging.privacy.ledger import Ledger
from fedimaging.privacy.noise import SimulatedNoise
from fedimaging.site.policy import SitePolicy
from fedimaging.site.site import Site
from fedimaging.study.schema import Study
from fedimaging.training.workbench import MemoryFormat, SiteRecords, Workbench, build_workbench


@dataclass(frozen=True)
class SimulatedFederation:
    """Who holds which rows, and what each may spend. Saved in a run folder, from which every process opens its sites.

    `train_site`, `test_site`, `validation_site` (N,) int32: index into `names` of the hospital that trains, tests or
    validates with a row, -1 nobody.
    `arm`: `federated`, or the baseline this is; it keys the noise, so that two arms never share noise.
    """

    folder: Path
    study: Study
    store: Path
    names: tuple[str, ...]
    train_site: np.ndarray
    test_site: np.ndarray
    validation_site: np.ndarray
    plans: dict[str, DpPlan]
    budgets: dict[str, Budget]
    device: str
    arm: str = "federated"
    memory_format: MemoryFormat = "contiguous"

    @property
    def train_names(self) -> tuple[str, ...]:
        """Hospitals with training rows, in name order."""
        return tuple(sorted(self.names[i] for i in np.unique(self.train_site) if i >= 0))

    @property
    def test_names(self) -> tuple[str, ...]:
        """Hospitals with test rows, in name order."""
        return tuple(sorted(self.names[i] for i in np.unique(self.test_site) if i >= 0))

    @property
    def is_federation(self) -> bool:
        """The run itself, or the run without a hospital; the baselines have no hospitals to protect from each other."""
        return self.arm == "federated" or self.arm.startswith("without/")

    def site_folder(self, name: str) -> Path:
        """Where this hospital keeps its ledger and log."""
        return self.folder / "sites" / quote(name, safe=" ").replace(".", "%2E")  # a manifest may say "a/b" or ".."

    def save(self) -> None:
        """Write federation.npz and federation.json into the run folder, by rename."""
        def rows(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(
                    file, train_site=self.train_site, test_site=self.test_site, validation_site=self.validation_site)

        write_whole(self.folder / "federation.npz", rows)
        write_json(self.folder / "federation.json", {
            "study": self.study.model_dump(mode="json"), "store": str(self.store), "names": list(self.names),
            "plans": {name: asdict(plan) for name, plan in self.plans.items()},
            "budgets": {name: asdict(budget) for name, budget in self.budgets.items()},
            "device": self.device, "arm": self.arm, "memory_format": self.memory_format,
        })

    @classmethod
    def open(cls, folder: Path) -> "SimulatedFederation":
        """Read what `save` wrote."""
        tree: dict[str, Any] = json.loads((folder / "federation.json").read_text(encoding="utf-8"))
        with np.load(folder / "federation.npz", allow_pickle=False) as rows:
            train_site, test_site = rows["train_site"], rows["test_site"]
            validation_site = rows["validation_site"] if "validation_site" in rows else np.full_like(test_site, -1)
        return cls(
            folder, Study.model_validate(tree["study"]), Path(tree["store"]), tuple(tree["names"]), train_site,
            test_site, validation_site, {name: DpPlan(**plan) for name, plan in tree["plans"].items()},
            {name: Budget(**budget) for name, budget in tree["budgets"].items()}, tree["device"],
            tree["arm"], tree["memory_format"],
        )


@dataclass(frozen=True)
class _Opened:
    federation: SimulatedFederation
    dataset: Dataset
    bench: Workbench
    train_rows: list[np.ndarray]
    test_rows: list[np.ndarray]
    validation_rows: list[np.ndarray]
    features: np.ndarray | None


def workbench_of(study: Study, device: str) -> Workbench:
    """The workbench of a study on a device."""
    return build_workbench(
        model=study.model, task=study.task, training=study.training, privacy=study.privacy,
        rounds=study.federation.rounds, proximal_mu=study.federation.proximal_mu,
        local_parameters=study.federation.local_parameters, channels=study.data.channels,
        image_size=tuple(study.data.image_size), seed=study.seed, device=device,
    )


def open_simulated_site(folder: Path, place: int) -> Site:
    """Hospital number `place` of the federation saved in `folder`."""
    opened = _opened(folder, (folder / "federation.json").stat().st_mtime_ns)
    federation, name = opened.federation, opened.federation.names[place]
    policy = federation.study.policy
    return Site(
        name=name,
        folder=federation.site_folder(name),
        study=federation.study,
        policy=SitePolicy(
            minimum_noise_multiplier=policy.minimum_noise_multiplier, unit="any", without_privacy=True,
            maximum_epochs=None, maximum_steps=None, maximum_rounds=None, minimum_patients=1, minimum_hospitals=1,
            release_evaluation=policy.release_evaluation, allow_simulated_noise=True,
            evaluation_noise_multiplier=policy.evaluation_noise_multiplier,
            release_calibration=federation.study.calibration_release,
            calibration_noise_multiplier=policy.calibration_noise_multiplier,
            release_groups=policy.release_groups, minimum_group=policy.minimum_group,
        ),
        bench=opened.bench,
        train_records=SiteRecords(opened.dataset, opened.train_rows[place], opened.features),
        test_records=SiteRecords(opened.dataset, opened.test_rows[place], opened.features),
        validation_records=SiteRecords(opened.dataset, opened.validation_rows[place], opened.features),
        plan=federation.plans.get(name),
        budget=federation.budgets.get(name),
        noise_for=lambda round: SimulatedNoise(federation.study.seed, f"{federation.arm}/{name}", round),
        open_ledger=_open_ledger,
        arm=federation.arm,
        durable=False,
    )


def _open_ledger(path: Path) -> Ledger:
    """Made on the spot for a hospital that never released anything; once it has, a missing ledger is an error."""
    return Ledger(path, durable=False) if (path.parent / "release.npz").exists() else Ledger.open_or_create(path)


@lru_cache(maxsize=2)
def _opened(folder: Path, version: int) -> _Opened:
    """Kept for the process until the federation is saved again (`version` is its file's time)."""
    federation = SimulatedFederation.open(folder)
    count = len(federation.names)
    bench = shared_workbench(federation.study, federation.device)
    bench.use_memory_format(federation.memory_format)
    dataset = Dataset.open(federation.store)
    return _Opened(
        federation,
        dataset,
        bench,
        _rows_by_site(federation.train_site, count),
        _rows_by_site(federation.test_site, count),
        _rows_by_site(federation.validation_site, count),
        bench.features_of(dataset),
    )


@lru_cache(maxsize=2)
def _workbench(fingerprint: str, study_json: str, device: str) -> Workbench:
    return workbench_of(Study.model_validate_json(study_json), device)


def shared_workbench(study: Study, device: str) -> Workbench:
    """One workbench a process for all arms of a study: they differ in who holds what, not in the network."""
    return _workbench(study.fingerprint, study.model_dump_json(), device)


def _rows_by_site(site_of_row: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(site_of_row, kind="stable")
    edges = np.searchsorted(site_of_row[order], np.arange(count + 1))
    return [order[edges[i] : edges[i + 1]] for i in range(count)]
