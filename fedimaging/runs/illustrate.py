"""Pictures for the report: a contact sheet of the data, and test scans with the final model's prediction."""

from pathlib import Path
from typing import Any

import numpy as np

from fedimaging.data.check import contact_sheet
from fedimaging.data.dataset import Dataset
from fedimaging.files import write_whole
from fedimaging.runs.pictures import example_panel, save_png
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study
from fedimaging.training.evaluate import predict
from fedimaging.training.workbench import SiteRecords, Workbench

_SHEET = 24


def illustrate(
    study: Study, dataset: Dataset, federation: SimulatedFederation, bench: Workbench, shared: np.ndarray, folder: Path
) -> dict[str, Any]:
    """Write pictures/ into the run folder; returns the `pictures` part of report.json.

    Only a simulation makes pictures: in a federation a real patient's picture never leaves the hospital.
    """
    pictures = folder / "pictures"
    sheet = contact_sheet(dataset, _SHEET, _site_of_row(federation))
    write_whole(pictures / "contact_sheet.png", lambda path: path.write_bytes(sheet))
    rows = _chosen(federation, study.evaluation.examples)
    full = bench.initial.copy()
    full[bench.shared] = shared
    bench.load(full)
    examples = []
    for number, row in enumerate(rows):
        outputs, target, _ = next(predict(bench, SiteRecords(dataset, rows[number : number + 1])))
        truth_mask = predicted_mask = None
        if bench.task.needs_mask:
            predicted_mask, truth_mask = outputs[0].argmax(0).cpu().numpy(), target[0].cpu().numpy()
        file = f"pictures/example_{number:02d}.png"
        save_png(example_panel(np.asarray(dataset.images[row]), truth_mask, predicted_mask), folder / file)
        examples.append({"file": file, "site": federation.names[federation.test_site[row]], "patient_index": number + 1,
                         **_words(bench, outputs, target)})
    return {"contact_sheet": "pictures/contact_sheet.png", "examples": examples}


def _site_of_row(federation: SimulatedFederation) -> np.ndarray:
    """(N,) the hospital that holds each row; blank for rows that nobody trains or tests with (validation)."""
    names = np.array([*federation.names, ""])
    return names[np.maximum(federation.train_site, federation.test_site)]


def _chosen(federation: SimulatedFederation, count: int) -> np.ndarray:
    """Test rows dealt over the hospitals in turn, the same for every run of a study."""
    rng = np.random.default_rng(federation.study.seed)
    by_site = [rng.permutation(np.flatnonzero(federation.test_site == place)) for place in range(len(federation.names))]
    dealt = [rows[turn] for turn in range(max((len(r) for r in by_site), default=0)) for rows in by_site if turn < len(rows)]
    return np.array(dealt[:count], dtype=np.int64)


def _words(bench: Workbench, outputs: Any, target: Any) -> dict[str, Any]:
    """Truth, prediction and the score of what was predicted, in words."""
    names = bench.task.class_names
    scores = bench.task.scores(outputs)[0].cpu().numpy()
    if bench.task.needs_mask:
        predicted, truth = outputs[0].argmax(0).cpu().numpy(), target[0].cpu().numpy()
        overlap = 2 * ((predicted > 0) & (truth > 0)).sum() / max(1, (predicted > 0).sum() + (truth > 0).sum())
        return {"truth": f"{int((truth > 0).sum())} voxels", "prediction": f"{int((predicted > 0).sum())} voxels",
                "score": round(float(overlap), 3)}
    if bench.task.multilabel:
        marked = [n for n, t in zip(names, target[0].tolist(), strict=True) if t > 0.5]
        found = [n for n, s in zip(names, scores.tolist(), strict=True) if s > 0.5]
        best = round(float(scores.max()), 3)
        return {"truth": ", ".join(marked) or "none", "prediction": ", ".join(found) or "none", "score": best}
    best = int(scores.argmax())
    return {"truth": names[int(target[0])], "prediction": names[best], "score": round(float(scores[best]), 3)}
