"""A hospital's own data for a study: its manifest and images in place of the study's, without those who may not be used.

When somebody opts out or withdraws consent, the decoded scans are made anew from those who stay, and all older ones are
deleted: nothing of the patient is kept in the store.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedimaging.data import manifest
from fedimaging.data.dataset import Dataset
from fedimaging.data.spec import DataSpec
from fedimaging.data.splits import split_by_patient
from fedimaging.errors import DataError, SiteError, unknown_name
from fedimaging.files import write_json
from fedimaging.site.cohort import Cohort, choose
from fedimaging.site.folder import SiteFolder
from fedimaging.site.plan import prepare_data
from fedimaging.study.load import validated
from fedimaging.study.schema import Study
from fedimaging.training.balance import check_column
from fedimaging.training.workbench import SiteRecords, Workbench

_LOG = logging.getLogger("fedimaging.site")
_NOBODY = Cohort((), frozenset(), frozenset(), frozenset()).digest


@dataclass(frozen=True)
class OwnRows:
    """What the manifest says of the rows that may be used, before any image is read: `patient_ids`, `split` (R,) str, and
    `labels` (R, L) whole numbers or None. `trains` False: this hospital is held out, and all its patients test."""

    cohort: Cohort
    patient_ids: np.ndarray
    split: np.ndarray
    labels: np.ndarray | None
    trains: bool

    @property
    def training(self) -> np.ndarray:
        """Places of the rows that train."""
        return np.flatnonzero((self.split == "train") & self.trains)

    @property
    def validation(self) -> np.ndarray:
        """Places of the rows that neither train nor test: choices about a trained model are made on them."""
        return np.flatnonzero((self.split == "validation") & self.trains)

    @property
    def testing(self) -> np.ndarray:
        """Places of the rows that test."""
        return np.flatnonzero((self.split == "test") | (not self.trains))


@dataclass(frozen=True)
class OwnData:
    """The same, with the scans. `features`: see `Workbench.features_of`."""

    rows: OwnRows
    dataset: Dataset
    features: np.ndarray | None = None

    def seen_by(self, bench: Workbench) -> "OwnData":
        """With what the fixed part of the study's network makes of each scan, where it has one; kept beside the scans."""
        return replace(self, features=bench.features_of(self.dataset))

    @property
    def training(self) -> SiteRecords:
        """Scans that train."""
        return SiteRecords(self.dataset, self.rows.training, self.features)

    @property
    def validation(self) -> SiteRecords:
        """Scans on which choices about a trained model are made."""
        return SiteRecords(self.dataset, self.rows.validation, self.features)

    @property
    def testing(self) -> SiteRecords:
        """Scans that test."""
        return SiteRecords(self.dataset, self.rows.testing, self.features)


def takes_part(study: Study, site: str) -> bool:
    """Whether this hospital trains (True) or is held out. Error: SiteError where the study does not name it."""
    hospitals = study.hospitals
    if hospitals.sites is None:
        raise SiteError("the study simulates its hospitals; one for real hospitals has by: column and sites: [their names].")
    if site not in hospitals.taking_part:
        raise SiteError(f"this hospital takes no part: {unknown_name('hospitals.sites', site, hospitals.taking_part)}")
    return site in hospitals.training_sites


def own_spec(folder: SiteFolder, study: Study) -> DataSpec:
    """The study's data block with this hospital's files in place of the study's."""
    data = folder.settings.data
    tree = study.data.model_dump() | {
        "source": "manifest", "phantoms": None, "root": str(folder.data_root), "path": data.manifest, "columns": data.columns,
    }
    return validated(DataSpec, tree, "data", DataError)


def read_own(folder: SiteFolder, study: Study) -> OwnRows:
    """Read the manifest; no image is opened. Errors: DataError, SiteError."""
    trains, task, spec = takes_part(study, folder.settings.name), study.task, own_spec(folder, study)
    masks = task.kind == "segmentation"
    whole = manifest.read_table(folder.manifest, spec.columns, task.columns, needs_mask=masks)
    if study.training.balance is not None and trains:
        check_column(study.training.balance, whole.values)
    cohort = _cohort(folder, study, whole.values)
    table = whole.only(cohort.keep)
    faults = manifest.problems_of(table, task.columns, task.classes, task.kind == "multilabel", needs_mask=masks)
    manifest.raise_first(table, faults)
    patients, told = np.array(table.values["patient_id"]), manifest.split_of(table)
    split = split_by_patient(patients, spec.split) if told is None else told
    return OwnRows(cohort, patients, split, manifest.labels_of(table, task.columns), trains)


def prepare_own(folder: SiteFolder, study: Study) -> OwnData:
    """Decode (once) and open the scans that may be used. Errors: DataError, SiteError, RunError."""
    rows = read_own(folder, study)
    dataset = prepare_data(
        study, own_spec(folder, study), keep=lambda columns: _cohort(folder, study, columns).keep, cache_dir=folder.store
    )
    if len(dataset) != len(rows.patient_ids) or (dataset.patient_ids != rows.patient_ids).any():
        raise DataError("the manifest changed while it was read; it is read again the next time.")
    _forget_others(folder, rows.cohort, dataset)
    return OwnData(rows, dataset)


def _cohort(folder: SiteFolder, study: Study, columns: Mapping[str, Sequence[str]]) -> Cohort:
    return choose(columns, folder.policy, folder.opt_out, folder.settings.name, study.hospitals.column)


def _forget_others(folder: SiteFolder, cohort: Cohort, dataset: Dataset) -> None:
    """Where other patients are left out than the last time: delete all scans but these, and say so in the log."""
    memory = folder.store / "left_out.json"
    if cohort.digest == _last_digest(memory):
        return
    assert dataset.store_dir is not None
    pixels = json.loads((dataset.store_dir / "table.json").read_text(encoding="utf-8"))["pixels"]
    for entry in folder.store.iterdir():
        if entry.is_dir() and entry.name not in (pixels, dataset.store_dir.name) and not entry.name.startswith("."):
            shutil.rmtree(entry, ignore_errors=True)  # another study's; made again from those who stay
    (folder.store / "hashes.json").unlink(missing_ok=True)  # it names files
    write_json(memory, {"digest": cohort.digest})
    folder.log.write("left_out_changed")  # how many stays between the hospital and its own screen
    _LOG.info(
        "%s: %d patients are left out from now on (%d opted out, %d without consent)", folder.settings.name,
        len(cohort.left_out), len(cohort.opted_out), len(cohort.without_consent),
    )


def _last_digest(memory: Path) -> str:
    try:
        return str(json.loads(memory.read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return _NOBODY
