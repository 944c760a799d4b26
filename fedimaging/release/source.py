"""A finished run, opened to be released: what it says of itself, its ledgers, its final model and its test patients."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.data.dataset import Dataset
from fedimaging.errors import ReleaseError, RunError
from fedimaging.files import sha256_of
from fedimaging.models.state import load_trainable
from fedimaging.runs import hospitals
from fedimaging.runs.report import read_report
from fedimaging.runs.report_view import is_held_out
from fedimaging.site.simulated import SimulatedFederation, workbench_of
from fedimaging.study.load import load
from fedimaging.study.release_spec import ReleaseSpec
from fedimaging.study.schema import Study
from fedimaging.training.workbench import Workbench


@dataclass(frozen=True)
class Source:
    """One finished run. `audit` and `calibration`: what RUN/audit.json and RUN/calibration.json hold; None where there is
    none. Nothing of the run folder is changed."""

    run: Path
    study: Study
    report: Mapping[str, Any]
    federation: SimulatedFederation
    dataset: Dataset
    bench: Workbench
    audit: Mapping[str, Any] | None
    calibration: Mapping[str, Any] | None

    @property
    def limits(self) -> ReleaseSpec:
        """What the study asks of a release; the block's defaults where it has none."""
        return self.study.release or ReleaseSpec()

    @property
    def metric(self) -> str:
        """The primary metric."""
        return str(self.report["task"]["primary_metric"])

    @cached_property
    def weights_sha256(self) -> str:
        """Of RUN/weights.safetensors."""
        return sha256_of(self.run / "weights.safetensors")

    def ledger(self, site: str) -> Path:
        """Where this hospital's ledger is, if it has one."""
        return self.federation.site_folder(site) / "ledger.sqlite"

    def sites(self, *, held_out: bool) -> dict[str, Mapping[str, Any]]:
        """The report's hospitals that train, or those held out, by name."""
        return {name: site for name, site in sorted(self.report["sites"].items()) if is_held_out(site) == held_out}

    def test_rows(self, *, held_out: bool = False) -> np.ndarray:
        """Rows of the data set (R,) with which the training hospitals, or those held out, test."""
        names = set(self.federation.test_names) & set(self.sites(held_out=held_out))
        places = [place for place, name in enumerate(self.federation.names) if name in names]
        return np.flatnonzero(np.isin(self.federation.test_site, places))


def open_run(run: Path) -> Source:
    """Open a folder of `fedimaging simulate` and load its final weights into its network, on the CPU.

    Errors: ReleaseError for a folder that is no finished run; RunError, DataError for parts that cannot be read.
    """
    run = run.resolve()
    for name in ("report.json", "run.json", "federation.json", "study.yaml", "weights.safetensors"):
        if not (run / name).is_file():
            raise ReleaseError(
                f"{str(run)!r} is no finished run of `fedimaging simulate` ({name} is missing); let it end, or name its folder."
            )
    study, report = load(run / "study.yaml"), read_report(run)
    try:
        federation = SimulatedFederation.open(run)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"the hospitals of {str(run)!r} cannot be read ({error!r}); run the study again.") from None
    bench = workbench_of(study, "cpu")
    _load_weights(run / "weights.safetensors", bench)
    return Source(
        run, study, report, federation, hospitals.load_data(study), bench, _json(run / "audit.json"),
        _json(run / "calibration.json"),
    )


def _load_weights(path: Path, bench: Workbench) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{str(path)!r} cannot be read ({error}); run the study again.") from None
    load_trainable(bench.model, arrays)
    bench.model.eval()


def _json(path: Path) -> dict[str, Any] | None:
    """What a file of the run holds; None where there is none. Error: RunError."""
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{str(path)!r} cannot be read ({error}); make it again.") from None
    if not isinstance(tree, dict):
        raise RunError(f"{str(path)!r} holds no mapping; make it again.")
    return tree
