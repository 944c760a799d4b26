"""Made-up runs of a sweep: reports with known figures, and folders that hold them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedimaging.runs.sweep_dir import SweepDir
from fedimaging.runs.sweep_grid import Asked, PlannedRun, expand

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def planned(epsilons: Sequence[float] = (1.0, math.inf), seeds: int = 2, **asked: Any) -> list[PlannedRun]:
    return expand(Asked(QUICKSTART, tuple(epsilons), seeds=seeds, **asked))


def interval(value: float | None, half: float = 0.05, patients: int = 40) -> dict[str, Any]:
    ends = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "low": ends[0], "high": ends[1], "n_patients": patients}


def arm(value: float, sites: Mapping[str, float] | None = None, **more: Any) -> dict[str, Any]:
    tables: dict[str, Any] = {name: {"auroc": interval(one, 0.1, 20)} for name, one in (sites or {}).items()}
    return {"test": {"auroc": interval(value)}, "held_out": {}, "sites": tables, "groups": {}, "group_gaps": {}, **more}


def report(run: PlannedRun, value: float, sites: Mapping[str, float] | None = None, **more: Any) -> dict[str, Any]:
    """A report as a run writes it, as far as a sweep reads it."""
    spent = None
    if run.study.privacy is not None:
        spent = {"epsilon": run.epsilon, "delta": 1e-4, "noise_multiplier": 2.0, "unit": run.unit}
    block = arm(value, sites)
    facts = {
        name: {"role": "train", "test": table, "privacy": spent} for name, table in block.pop("sites").items()
    } or {"hospital_01": {"role": "train", "test": {}, "privacy": spent}}
    return {
        "schema": "fedimaging-report/1", "name": "made-up", "fingerprint": run.study.fingerprint,
        "task": {"kind": "binary", "primary_metric": "auroc"}, "model": {"name": "small_cnn"}, "sites": facts,
        "seconds": {"total": 12.5, "training": 10.0}, "peak_memory_mb": 500.0, "machine": {"cpu": "abacus"},
        "privacy": {"statement": "The guarantee covers <one> patient."} if spent else None, "baselines": {}, **block, **more,
    }


def write(folder: SweepDir, run: PlannedRun, tree: Mapping[str, Any], audit: Mapping[str, Any] | None = None) -> None:
    path = folder.run(run)
    path.mkdir(parents=True)
    (path / "report.json").write_text(json.dumps(tree))
    if audit is not None:
        (path / "audit.json").write_text(json.dumps(audit))


def attack(verdict: str = "consistent") -> dict[str, Any]:
    return {"verdict": verdict, "attacks": [{
        "name": "loss threshold", "target": "final model", "unit": "patient", "verdict": verdict,
        "metrics": {"auc": {"value": 0.52, "low": 0.47, "high": 0.57}, "tpr_at_1%": {"value": 0.02, "low": 0.0, "high": 0.06},
                    "tpr_at_0.1%": None},
        "ceiling": {"tpr_at_1%": 0.03, "tpr_at_0.1%": 0.003, "epsilon": 1.0},
    }]}
