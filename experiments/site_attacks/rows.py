"""A row of the table: an attack is carried out, and judged by what the hospital's own files, the kernel and the line show.

An attack is refused where every single try got the answer that it had to get, each refusal is in the hospital's log, the
ledger did not change, no file appeared, memory stayed flat, and the hospital still answers an honest question.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hostile import Operator
from stage import VICTIM, Look, Stage

from fedimaging.federated import wire

MOST_MEMORY_MB = 200.0
"""How far the hospital's peak may rise. What one call may bring unfolds to half of that; the messages aim at 10 GB."""

_LOG_LINES_A_MINUTE, _MOST_OF_A_ROW = 20, 8  # of one code: what `AuditLog` writes, and what a row needs


@dataclass(frozen=True)
class Try:
    """`got` must be `expected`. `logged`: the code that must stand in the hospital's log for it, empty for none."""

    sent: str
    expected: str
    got: str
    logged: str = ""


@dataclass
class Scene:
    """Who plays."""

    stage: Stage
    operator: Operator
    kept: dict[str, object] = field(default_factory=dict)

    def refused(self, sent: str, code: str, got: str) -> Try:
        """A try that must be answered with this code, and logged."""
        return Try(sent, code, got, code)


@dataclass(frozen=True)
class Attack:
    """`costs`: a row that shows an honest round, which is charged. `may_write`: where the hospital may write files."""

    name: str
    act: Callable[[Scene], Sequence[Try]]
    costs: bool = False
    may_write: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What was seen."""

    attack: str
    tries: Sequence[Try]
    log: str
    epsilon: tuple[float, float]
    files: tuple[str, ...]
    memory_mb: float
    faults: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Nothing is wrong."""
        return not self.faults

    def line(self) -> str:
        """As a line of the table."""
        cells = (
            self.attack, _listed([one.sent for one in self.tries]), _counted([one.got for one in self.tries]), self.log,
            f"{self.epsilon[0]:.3f} → {self.epsilon[1]:.3f}", ", ".join(self.files) or "none", f"+{self.memory_mb:.0f}",
            f"**FAILS**: {'; '.join(self.faults)}" if self.faults else "holds",
        )
        return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


HEAD = (
    "| attack | what was sent | what came of it | the hospital's log | ε before → after | new files | peak MB | verdict |"
    "\n|---|---|---|---|---|---|---|---|"
)


def carry_out(attack: Attack, scene: Scene) -> Row:
    """Do it, and judge."""
    stage = scene.stage
    _wait_for_room(stage)
    before = stage.look()
    flat = stage.forget_peak()
    tries = attack.act(scene)
    serves = still_serves(scene)
    after = stage.look()
    events = stage.events(before.events)
    files = tuple(sorted(name for name in after.files - before.files if not name.startswith(attack.may_write or ("//",))))
    logged = Counter(str(event["code"]) for event in events if event["event"] == "refused")
    return Row(
        attack.name, tries, _log_words(events), (before.epsilon, after.epsilon), files, max(0.0, after.largest_mb - flat),
        tuple(_faults(attack, tries, logged, before, after, files, after.largest_mb - flat, serves)),
    )


def _faults(
    attack: Attack, tries: Sequence[Try], logged: Counter[str], before: Look, after: Look, files: Sequence[str],
    memory: float, serves: bool,
) -> list[str]:
    found = [f"{one.sent}: {one.got}, not {one.expected}" for one in tries if one.got != one.expected]
    wanted = Counter(one.logged for one in tries if one.logged)
    found += [f"{code} stands {logged[code]} times in the log, not {n}" for code, n in wanted.items() if logged[code] < n]
    if not tries:
        found.append("nothing was tried")
    if (before.ledger != after.ledger) is not attack.costs:
        found.append(f"the ledger has {before.ledger} events before and {after.ledger} after")
    if files and not attack.costs:
        found.append("files appeared")
    if memory > MOST_MEMORY_MB and not attack.costs:
        found.append(f"{memory:.0f} MB of memory")
    if not after.alive or not serves:
        found.append("the hospital does not serve any more")
    return found


def still_serves(scene: Scene) -> bool:
    """An honest question is answered: the hospital takes part in the study."""
    question = wire.write_enrolment(scene.stage.study.fingerprint)
    return scene.operator.ask(scene.operator.node(VICTIM), ("query", question))[0].text == "site"


def _wait_for_room(stage: Stage) -> None:
    """Of one code the log writes so many lines a minute, and then counts; wait until it writes each line again."""
    while True:
        now = time.time()
        recent = Counter(str(e["code"]) for e in stage.events() if e["event"] == "refused" and now - e["time"] < 61)
        if not recent or max(recent.values()) <= _LOG_LINES_A_MINUTE - _MOST_OF_A_ROW:
            return
        time.sleep(2)


def _log_words(events: Sequence[dict[str, object]]) -> str:
    words = Counter(" ".join(str(event[key]) for key in ("event", "code") if key in event) for event in events)
    return ", ".join(f"{word} × {n}" if n > 1 else word for word, n in words.items()) or "none"


def _counted(texts: Sequence[str]) -> str:
    return ", ".join(f"{text} × {n}" if n > 1 else text for text, n in Counter(texts).items())


def _listed(texts: Sequence[str]) -> str:
    return "; ".join(texts)
