"""What the command line says about how to run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How to run, as the command line says it; none of it changes what is computed."""

    resume: bool = False
    baselines: bool = False
    workers: int | str = "auto"
    carrier: str = "in_process"
    ray_address: str | None = None
    track: str | None = None
    report: bool = True
    leave_one_out: bool = False
