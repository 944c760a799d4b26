"""A model of the real chest X-ray hospitals is released, verified, run by MONAI, and predicts at the hospital it never saw.

    python experiments/release/run.py --data FOLDER_OF_THE_SHARED_IMAGES [--work runs/release]

Two studies: that of configs/chest_x_ray_sites.yaml, and one with patient-level privacy whose audit is required. What fails a
limit is refused, and then waived by name.
Writes results/figures.json, and results/printed.txt: what each command printed.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CLI = [sys.executable, "-m", "fedimaging.cli"]
PEOPLE = ["--approved-by", "A. Example", "--role", "experimenter", "--reason", "to see the whole way once"]
USE = "{intended_use: telling AP from PA views in an archive, not_for: [findings of any kind, patients under 16], "
GROUPS = ["-o", "evaluation.groups=[sex]", "-o", "evaluation.examples=0"]
PLAIN = [
    *GROUPS, "-o", "data.split.validation=0.15", "-o", "evaluation.calibration=temperature",
    "-o", f"release={USE}minimum_external: 0.75, largest_subgroup_gap: 0.25, largest_calibration_error: 0.2}}",
]
PRIVATE = [
    *GROUPS, "-o", "name=chest-x-ray-private", "-o", f"release={USE}minimum_external: 0.75, audit: required}}",
    "-o", "privacy={target_epsilon: 8, delta: 0.01}", "-o", "model={name: wavelet_net}", "-o", "federation.rounds=30",
    "-o", "training={optimizer: sgd, learning_rate: 2.0, batch_size: 1000, local_steps: 1}",
]  # fmt: skip


class Printed:
    """What the commands print, with the folders of this machine taken out."""

    def __init__(self, folders: dict[Path, str]) -> None:
        self.folders = sorted(folders.items(), key=lambda item: -len(str(item[0])))
        self.text = ""

    def run(self, command: list[str], *, cwd: Path | None = None) -> tuple[int, str]:
        """Run it; exit code and what it printed."""
        here = os.environ | ({} if cwd is None else {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"})
        done = subprocess.run(command, cwd=cwd, env=here, capture_output=True, text=True, check=False)
        said = done.stdout + (done.stderr if done.returncode else "")
        name = ["fedimaging", *command[3:]] if command[:3] == CLI else ["python", *command[1:]]
        shown = f"$ {' '.join(name)}\n{said}[exit code {done.returncode}]\n\n"
        for folder, word in self.folders:
            shown = shown.replace(str(folder), word)
        self.text += shown
        return done.returncode, said


def manifest_of(data: Path, work: Path, site: str) -> tuple[Path, list[dict[str, str]]]:
    """The rows of one hospital as a manifest of its own."""
    with (data / "cxr_multisite" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["site"] == site]
    for row in rows:
        row["image"] = str(data / "cxr_multisite" / row["image"])
    path = work / f"{site}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["image", "patient_id", "site", "ap_view"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return path, rows


def changed_bytes_found(release: Path, public: Path) -> tuple[int, int]:
    """How many files there are, and in how many of them `verify` finds one changed byte, naming the file."""
    found, files = 0, sorted(path for path in release.rglob("*") if path.is_file())
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        verify = [*CLI, "verify", str(release), "--public-key", str(public)]
        done = subprocess.run(verify, capture_output=True, text=True, check=False)
        found += done.returncode == 2 and path.name in done.stderr
        path.write_bytes(content)
    return len(files), found


def words_found(release: Path, data: Path) -> tuple[int, list[str]]:
    """How many patient ids, image names and folders were looked for, and which are in some byte of the release."""
    with (data / "cxr_multisite" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    looked_for = {row["patient_id"] for row in rows} | {Path(row["image"]).name for row in rows}
    looked_for |= {row["source_file"] for row in rows} - {""}
    looked_for |= {str(data), str(ROOT), sys.prefix, "metadata.csv", "cxr_multisite"}
    content = b"\n".join(path.read_bytes() for path in release.rglob("*") if path.is_file())
    return len(looked_for), sorted(word for word in looked_for if word.encode() in content)


def auroc(rows: list[dict[str, str]], truth: list[int]) -> float:
    """Of the column AP."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, [float(row["AP"]) for row in rows]))


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def walk(name: str, options: list[str], work: Path, data: Path, out: Printed) -> dict[str, Any]:
    """One study from simulation to a traced prediction; its figures."""
    run, release, key = work / name, work / f"{name}-release", work / "key.pem"
    study = [*CLI, "simulate", str(ROOT / "configs" / "chest_x_ray_sites.yaml"), "-q", "-o", f"data.root={data}", *options]
    if not (run / "report.json").exists():
        out.run([*study, "--out", str(run)])
    if "audit: required" in " ".join(options):
        out.run([*CLI, "audit", str(run), "--attacks", "membership", "--shadows", "2", "-q"])
    make = [*CLI, "release", str(run), *PEOPLE, "--key", str(key), "--out", str(release)]
    code, said = out.run(make)
    failed = [line.partition(":")[0].strip() for line in said.splitlines() if line.startswith("  ")] if code else []
    figures: dict[str, Any] = {"refused for": failed}
    if code:
        out.run([*make, *(word for check in failed for word in ("--waive", f"{check}=an experiment that no patient will meet"))])
    out.run([*CLI, "verify", str(release), "--public-key", f"{key}.pub"])
    figures["files"], figures["changed bytes found"] = changed_bytes_found(release, work / "key.pem.pub")
    figures["words looked for"], figures["words found"] = words_found(release, data)
    manifest, rows = manifest_of(data, work, "GB")
    out.run([*CLI, "predict", str(release), str(manifest), "--out", str(work / f"{name}-GB")])
    predicted = table(work / f"{name}-GB" / "predictions.csv")
    truth = [int(row["ap_view"]) for row in rows]
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    figures["AUROC at GB, report"] = report["held_out"]["auroc"]
    figures["AUROC at GB, predictions"] = auroc(predicted, truth)
    figures["flagged at GB"] = [sum(row["flagged"] == "true" for row in predicted), len(predicted)]
    figures["flagged elsewhere"] = elsewhere(name, release, work, data, out)
    out.run([*CLI, "trace", str(release), str(work / f"{name}-GB" / "predictions.log"), rows[4]["image"]])
    figures["largest difference from MONAI's run"] = by_monai(name, release, work, rows, predicted, out)
    figures["checks"] = json.loads((release / "manifest.json").read_text(encoding="utf-8"))["checks"]
    figures["export"] = json.loads((release / "manifest.json").read_text(encoding="utf-8"))["export"]
    return figures


def elsewhere(name: str, release: Path, work: Path, data: Path, out: Printed) -> list[int]:
    """Pictures of other kinds (CT, MR, ultrasound, of one frame): how many are flagged, of how many that can be read."""
    folder = work / f"{name}-others"
    out.run([*CLI, "predict", str(release), *map(str, sorted((data / "dicom" / "single").glob("*.dcm"))), "--out", str(folder)])
    readable = [row for row in table(folder / "predictions.csv") if not row["fault"]]
    return [sum(row["flagged"] == "true" for row in readable), len(readable)]


def by_monai(
    name: str, release: Path, work: Path, rows: list[dict[str, str]], predicted: list[dict[str, str]], out: Printed
) -> float:
    """MONAI's command line on a copy of the bundle, without fedimaging on its path."""
    bundle, images, results = work / f"{name}-bundle", work / "GB-images", work / f"{name}-monai"
    shutil.copytree(release / "bundle", bundle, dirs_exist_ok=True)
    images.mkdir(exist_ok=True)
    for row in rows:
        shutil.copy(row["image"], images)
    monai = [sys.executable, "-m", "monai.bundle"]
    meta, config = ["--meta_file", "configs/metadata.json"], ["--config_file", "configs/inference.json"]
    out.run([*monai, "verify_metadata", *meta, "--filepath", "docs/metadata_schema.json"], cwd=bundle)
    out.run([*monai, "verify_net_in_out", "network", *meta, *config], cwd=bundle)
    out.run([*monai, "run", *config, "--dataset_dir", str(images), "--output_dir", str(results)], cwd=bundle)
    theirs = {Path(row["image"]).name: row for row in table(results / "predictions.csv")}
    return max(abs(float(row["AP"]) - float(theirs[Path(row["image"]).name]["AP"])) for row in predicted)


def main() -> None:
    """Both studies."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs") / "release")
    given = parser.parse_args()
    data, work = given.data.resolve(), given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    out = Printed({data: "DATA", work: "WORK", ROOT: "."})
    if not (work / "key.pem").exists():
        out.run([*CLI, "release-key", str(work / "key.pem")])
    figures = {name: walk(name, options, work, data, out) for name, options in (("plain", PLAIN), ("private", PRIVATE))}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (HERE / "results" / "printed.txt").write_text(out.text, encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
