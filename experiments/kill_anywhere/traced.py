"""The command line, changed from outside in two ways: it counts its private steps, and it may die at a moment that is set.

    KILL_ANYWHERE_TRACE=FILE python experiments/kill_anywhere/traced.py simulate STUDY.yaml …

Each private step writes its hospital's name to a file before it runs. This is the count of run steps that does not come from
the ledger. A line is one `write` to a file opened for appending, so it survives a kill -9 of the process; it is written before
the step sees a patient, so no step goes uncounted.

KILL_ANYWHERE_AT=N and KILL_ANYWHERE_FOLDER=DIR: SIGKILL just before the N-th operation on a file or folder in DIR. Each such
operation is written to FILE.operations; Python tells of them (PEP 578), and what SQLite does inside is not among them.
"""

import os
import signal
import sys
from typing import Any

from fedimaging import cli
from fedimaging.site import site
from fedimaging.training import local


def trace_into(path: str) -> None:
    """Replace the two functions that the product calls; what they compute stays the same."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    train, step = site.train_locally, local.private_gradient
    training = [b""]

    def traced_train(*args: Any, key: str, **named: Any) -> Any:
        _arm, _seed, rest = key.split("/", 2)
        training[0] = rest.rpartition("/")[0].encode() + b"\n"  # the rest is NAME/ROUND
        return train(*args, key=key, **named)

    def traced_step(*args: Any, **named: Any) -> Any:
        os.write(file, training[0])
        return step(*args, **named)

    site.train_locally, local.private_gradient = traced_train, traced_step


_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def die_at(number: int, folder: str, log: str) -> None:
    """Die before the operation of that number, from 1; 0: never."""
    file, own, seen = os.open(log, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o600), os.getpid(), [0]

    def operation(event: str, args: tuple[Any, ...]) -> None:
        changes = event in _CHANGES or (event == "open" and bool(args[2] & _WRITES))
        if not (changes and str(args[0]).startswith(folder) and os.getpid() == own):
            return
        seen[0] += 1
        os.write(file, f"{event} {str(args[0]).removeprefix(folder)}\n".encode())
        if seen[0] == number:
            os.kill(own, signal.SIGKILL)

    sys.addaudithook(operation)


if __name__ == "__main__":
    trace_into(os.environ["KILL_ANYWHERE_TRACE"])
    if "KILL_ANYWHERE_AT" in os.environ:
        die_at(
            int(os.environ["KILL_ANYWHERE_AT"]), os.environ["KILL_ANYWHERE_FOLDER"],
            os.environ["KILL_ANYWHERE_TRACE"] + ".operations",
        )  # fmt: skip
    cli.main()
