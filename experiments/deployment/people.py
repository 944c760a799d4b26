"""The people of the guide: a hospital's, and the operator, each at their own computer with their own files.

They type what fedimaging/site/README.md says, with their own names in place of the guide's; what is typed is taken from there.
"""

import csv
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
FEDERATION = "federation.example.org"
_GUIDE = (ROOT / "fedimaging" / "site" / "README.md").read_text(encoding="utf-8")
_TYPED = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```", _GUIDE, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]

REGIONS = {
    "north": ("DE-MHH",), "south": ("ES", "IT"), "west": ("ASIA-MEA", "AU"), "east": ("EU-OTHER", "GB", "AMERICAS"),
}  # fmt: skip
"""Each hospital's patients: the regions of the X-ray set that it is given."""


def of_guide(beginning: str) -> str:
    """The one command of the guide that begins so. Error: LookupError where the guide has none, or several."""
    found = [line for line in _TYPED if line.startswith(f"fedimaging {beginning}")]
    if len(found) != 1:
        raise LookupError(f"the guide has {len(found)} commands that begin with {beginning!r}")
    return found[0]


@dataclass
class Person:
    """Somebody at a computer. `on_host(command)`: the command as it is run there; `home`: their folder."""

    name: str
    home: Path
    program: Path
    on_host: Callable[[Sequence[str]], list[str]]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def typed(self, beginning: str, *more: str, **changes: str) -> list[str]:
        """The guide's command with this hospital's name, and with `changes` (words of the guide: words in their place)."""
        words = shlex.split(of_guide(beginning))
        swap = {"north": self.name, "north/report.html": f"{self.name}/report.html", **changes}
        return [*(swap.get(word, word) for word in words), *more]

    def does(self, command: list[str], *, fails: bool = False) -> str:
        """Run it and return what it printed. Error: SystemExit where it ends otherwise than expected."""
        print(f"{self.name}$ {shlex.join(command)}", flush=True)
        done = subprocess.run(self._real(command), cwd=self.home, capture_output=True, text=True, timeout=900)
        if (done.returncode != 0) != fails:
            raise SystemExit(f"exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def starts(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start it; what it prints goes to a file of its own."""
        print(f"{self.name}$ {shlex.join(command)} &", flush=True)
        with (self.home / f"{'-'.join(command[1:3])}.txt").open("ab") as out:
            process = subprocess.Popen(self._real(command), cwd=self.home, stdout=out, stderr=out)
        self.running.append(process)
        return process

    def end(self) -> None:
        """SIGTERM to all that was started, and wait."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(60)

    def _real(self, command: list[str]) -> list[str]:
        return self.on_host([str(self.program), *command[1:]])


def give_data(source: Path, folder: Path, name: str, regions: Sequence[str]) -> int:
    """A hospital's images and manifest, its name in the column `site`; returns the number of patients."""
    folder.mkdir(parents=True)
    with (source / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = [row | {"site": name} for row in csv.DictReader(file) if row["site"] in regions]
    write_manifest(folder / "manifest.csv", rows)
    for row in rows:
        (folder / row["image"]).parent.mkdir(exist_ok=True)
        shutil.copy(source / row["image"], folder / row["image"])
    return len({row["patient_id"] for row in rows})


def write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    """The columns that training and testing use."""
    kept = ["image", "patient_id", "site", "ap_view", "sex", "age"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
