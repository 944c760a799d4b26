"""Pictures for the report: a contact sheet of the data, and test scans with the final model's prediction and where it comes
from: an explanation map for a class, a map of uncertainty for a segmentation."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedimaging.data.check import contact_sheet
from fedimaging.data.dataset import Dataset
from fedimaging.files import write_whole
from fedimaging.runs.pictures import example_panel, map_panel, save_png
from fedimaging.site.simulated import SimulatedFederation
from fedimaging.study.schema import Study
from fedimaging.training.evaluate import predict
from fedimaging.training.explain import UNCERTAINTY, saliency, uncertainty
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
    for number in range(len(rows)):
        file = f"pictures/example_{number:02d}.png"
        panel, facts = example(bench, SiteRecords(dataset, rows[number : number + 1]))
        save_png(panel, folder / file)
        site = federation.names[federation.test_site[rows[number]]]
        examples.append({"file": file, "site": site, "patient_index": number + 1, **facts})
    return {"contact_sheet": "pictures/contact_sheet.png", "examples": examples}


def example(bench: Workbench, record: SiteRecords) -> tuple[Image.Image, dict[str, Any]]:
    """One scan with the weights now loaded: its picture with the map beside it, and truth, prediction and map in words.

    `record` has one row. The map explains the class of the highest score; for a segmentation it shows uncertainty.
    """
    outputs, target, _ = next(predict(bench, record))
    image = np.array(record.dataset.images[record.rows[0]])
    if bench.task.needs_mask:
        predicted, truth = outputs[0].argmax(0).cpu().numpy(), target[0].cpu().numpy()
        unsure = map_panel(image, uncertainty(bench.model, image), (truth, predicted))
        outlined = example_panel(image, truth, predicted)
        panel = Image.fromarray(np.concatenate([np.asarray(outlined), np.asarray(unsure)[:, unsure.height :]], axis=1))
        return panel, _words(bench, outputs, target) | {"map": {"method": "uncertainty", "meaning": UNCERTAINTY}}
    best = int(bench.task.scores(outputs)[0].argmax())
    found = saliency(bench.model, image, best, multilabel=bench.task.multilabel)
    facts = {"method": found.method, "meaning": found.meaning, "why": found.why, "peak": round(found.peak, 4),
             "class": bench.task.class_names[best]}
    return map_panel(image, found.values), _words(bench, outputs, target) | {"map": facts}


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
