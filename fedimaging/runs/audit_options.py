"""What the command line says about how to audit a run. Light: it loads nothing heavy."""

from dataclasses import dataclass

from fedimaging.errors import RunError, bad_value, unknown_name

ATTACKS = ("membership", "canaries", "inversion")


@dataclass(frozen=True)
class AuditOptions:
    """`attacks`: families to try. `shadows`: reference federations of the membership attacks, in complementary pairs.
    `canaries`: of the one-run audit. `jobs`: processes that train shadows side by side; it changes no figure but rounding.

    Error: RunError for a value that is not allowed.
    """

    attacks: tuple[str, ...] = ATTACKS
    shadows: int = 8
    canaries: int = 200
    jobs: int = 1

    def __post_init__(self) -> None:
        for name in self.attacks:
            if name not in ATTACKS:
                raise RunError(unknown_name("attacks", name, ATTACKS))
        if not self.attacks or len(set(self.attacks)) < len(self.attacks):
            raise RunError(bad_value("attacks", ",".join(self.attacks), f"must name some of {', '.join(ATTACKS)}, each once"))
        if self.shadows < 2 or self.shadows % 2 or self.shadows > 256:
            raise RunError(bad_value("shadows", self.shadows, "must be an even number from 2 to 256: shadows come in pairs"))
        if not 20 <= self.canaries <= 100_000:
            raise RunError(bad_value("canaries", self.canaries, "must be from 20 to 100,000"))
        if self.jobs < 1:
            raise RunError(bad_value("jobs", self.jobs, "must be at least 1"))
