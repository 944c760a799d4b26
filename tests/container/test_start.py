"""Process 1 hears SIGTERM from its first moment, and is the command line otherwise."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fedimaging
from tests.container.scripts import CONTAINER

_SCRIPT = str(CONTAINER / "start.py")


def test_sigterm_while_the_package_is_still_loading(tmp_path: Path) -> None:
    (tmp_path / "fedimaging").mkdir()
    (tmp_path / "fedimaging" / "cli.py").write_text("import sys\nprint('loading', flush=True)\nsys.stdin.read()\n")
    command = [sys.executable, "-S", _SCRIPT]  # -S: without the package that is installed
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM


def test_it_is_the_command_line() -> None:
    told = subprocess.run([sys.executable, _SCRIPT, "--version"], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0
    assert fedimaging.__version__ in told.stdout
