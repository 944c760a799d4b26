"""Generated patients with a column that says who is in the harder group, as pictures and a manifest of the first kind."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from fedimaging.data.spec import PhantomSpec
from fedimaging.data.synthetic import draw_scans, render

SIZE = (28, 28)


def write(folder: Path, *, patients: int, seed: int) -> Path:
    """Pictures and manifest.csv in `folder`, unless they are there. The column `group` is `women_over_70`, whose lesions are
    fainter, or `others`."""
    if (folder / "manifest.csv").exists():
        return folder
    spec = PhantomSpec(patients=patients, scans_per_patient=(1, 2), hospitals=6, prevalence=(0.3, 0.6), seed=seed)
    people = draw_scans(spec)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, phantom in enumerate(render(spec, people, SIZE)):
        Image.fromarray(phantom.image[0]).save(folder / f"{number}.png")
        sex, age = people.columns["sex"][number], int(people.columns["age"][number])
        group = "women_over_70" if sex == "F" and age > 70 else "others"
        rows.append([f"{number}.png", people.patient_ids[number], people.columns["site"][number], people.labels["lesion"][number],
                     sex, age, group])
    with (folder / "manifest.part").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image", "patient_id", "site", "lesion", "sex", "age", "group"], *rows])
    (folder / "manifest.part").rename(folder / "manifest.csv")
    return folder


def share_of_group(folder: Path) -> float:
    """The share of patients in the harder group, for a study to declare."""
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        group_of = {row["patient_id"]: row["group"] for row in csv.DictReader(file)}
    return float(np.mean([group == "women_over_70" for group in group_of.values()]))
