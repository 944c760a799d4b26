"""Optional trackers: the rounds of a run written for TensorBoard or MLflow, into the run folder only."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fedimaging.errors import StudyError, bad_value
from fedimaging.results import RoundResult
from fedimaging.study.schema import Study


class Tracker(Protocol):
    """Receives each round of the federated arm."""

    def round(self, result: RoundResult) -> None:
        """A round is done."""

    def close(self) -> None:
        """The run is done."""


def check_tracker(name: str | None) -> None:
    """Before anything is written. Errors: StudyError for an unknown name or a missing package."""
    if name is None:
        return
    if name not in TRACKERS:
        raise StudyError(bad_value("--track", name, f"is not one of {', '.join(sorted(TRACKERS))}"))
    if find_spec(name) is None:
        raise StudyError(f"--track {name} needs a package that is not installed: pip install 'fedimaging[{name}]'.")


def open_tracker(name: str | None, folder: Path, study: Study) -> Tracker | None:
    """The tracker of that name, which `check_tracker` has passed; None for None."""
    return None if name is None else TRACKERS[name](folder, study)


def _values(result: RoundResult) -> dict[str, float]:
    spent = [value for value in result.epsilon.values() if value == value]
    values = {f"test/{name}": value for name, value in result.metrics.items() if value == value}
    values |= {"privacy/largest_epsilon": max(spent)} if spent else {}
    return {**values, "round/update_norm": result.update_norm, "round/seconds": sum(result.seconds.values())}


class _TensorBoard:
    def __init__(self, folder: Path, study: Study) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def round(self, result: RoundResult) -> None:
        for name, value in _values(result).items():
            self._writer.add_scalar(name, value, result.round)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, folder: Path, study: Study) -> None:
        import mlflow

        mlflow.set_tracking_uri((folder / "mlflow").as_uri())
        mlflow.set_experiment(study.name)
        mlflow.start_run(run_name=study.fingerprint[:12])
        mlflow.log_params({"seed": study.seed, "rounds": study.federation.rounds, "model": study.model.name})
        self._mlflow = mlflow

    def round(self, result: RoundResult) -> None:
        self._mlflow.log_metrics({k.replace("/", "."): v for k, v in _values(result).items()}, step=result.round)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[Path, Study], Tracker]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow}
