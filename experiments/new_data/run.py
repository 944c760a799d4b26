"""Two data sets that nothing here was made for, given only a manifest each, run through the sweep.

    python experiments/new_data/run.py --data FOLDER_OF_THE_SHARED_IMAGES [--seeds 3]

Writes two manifests (CSV files, nothing else), checks them with `fedimaging data check`, and sweeps over ε = 8 and no
privacy. results/table.md holds what came out.
"""

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
CLI = [sys.executable, "-m", "fedimaging.cli"]


def lungs(data: Path, out: Path) -> list[str]:
    """The X-rays that have a mask of the lungs; hospitals with fewer than ten patients are put together."""
    rows = [row for row in _read(data / "cxr_multisite" / "metadata.csv") if row["mask"]]
    patients = {site: {r["patient_id"] for r in rows if r["site"] == site} for site in {r["site"] for r in rows}}
    for row in rows:
        row["image"], row["mask"] = (str(data / "cxr_multisite" / row[name]) for name in ("image", "mask"))
        row["site"] = row["site"] if len(patients[row["site"]]) >= 10 else "SMALL-SITES"
    return [_write(out, rows, ["image", "mask", "patient_id", "site", "sex", "age"]), "--mask"]


def hippocampus_size(data: Path, out: Path) -> list[str]:
    """Each volume with a label: more voxels of hippocampus than the median case."""
    rows = _read(data / "hippocampus" / "metadata.csv")
    sizes = [int(row["voxels_anterior"]) + int(row["voxels_posterior"]) for row in rows]
    for row, size in zip(rows, sizes, strict=True):
        row |= {"image": str(data / "hippocampus" / row["image"]), "patient_id": row["case_id"]}
        row["large"] = str(int(size > median(sizes)))
    return [_write(out, rows, ["image", "patient_id", "large"]), "--label", "large"]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict[str, str]], columns: list[str]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return str(path)


def main() -> None:
    """Manifests, checks, sweeps, table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--work", type=Path, default=Path("sweeps") / "new_data")
    given = parser.parse_args()
    folder, parts = given.work.resolve(), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, manifest in (("lungs", lungs), ("hippocampus_size", hippocampus_size)):
        began = time.monotonic()
        checked = subprocess.run([*CLI, "data", "check", *manifest(given.data.resolve(), folder / f"{name}.csv")], check=True,
                                 capture_output=True, text=True)  # fmt: skip
        subprocess.run([
            *CLI, "sweep", str(HERE / f"{name}.yaml"), "--epsilon", "8,inf", "--seeds", given.seeds, "--quiet",
            "--out", str(folder / name), "-o", f"data.root={folder}",
        ], check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        table = (folder / name / "table.md").read_text(encoding="utf-8").strip()
        said = f"`data check`: {checked.stdout.strip().splitlines()[0].rpartition('/')[2]}"
        parts.append(f"## {name}\n\n{said}\n\n{table}\n\n{time.monotonic() - began:.0f} s\n")
        print(parts[-1], flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "table.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
