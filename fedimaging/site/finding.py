"""One line of the preflight check."""

from dataclasses import dataclass

TICK, CROSS, UNKNOWN = "✓", "✗", "?"


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is well (None: cannot be known here, or something to think about), and in words."""

    what: str
    ok: bool | None
    text: str

    @property
    def mark(self) -> str:
        """A tick, a cross, or a question mark."""
        return UNKNOWN if self.ok is None else TICK if self.ok else CROSS


def lines(findings: list[Finding]) -> list[str]:
    """For a terminal; the last line says what follows from all of them."""
    width = max(len(finding.what) for finding in findings)
    bad = [finding.what for finding in findings if finding.ok is False]
    verdict = f"not ready: {', '.join(bad)}" if bad else "ready"
    return [*(f"{finding.mark} {finding.what.ljust(width)}  {finding.text}" for finding in findings), "", verdict]
