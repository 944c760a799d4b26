"""Hours in which a hospital trains: "20:00-06:00" every day, "mon-fri 20:00-06:00", "sat,sun 00:00-24:00"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM = re.compile(r"(?:([a-z,-]+) +)?(\d\d):([0-5]\d)-(\d\d):([0-5]\d)")
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class Hours:
    """From minute `start` of these weekdays (0 is Monday) up to minute `end`, on the next day where that is not later."""

    days: frozenset[int]
    start: int
    end: int

    def hold(self, moment: datetime) -> bool:
        """Whether this moment is within."""
        minute, today = moment.hour * 60 + moment.minute, moment.weekday()
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        return (today in self.days and minute >= self.start) or ((today - 1) % 7 in self.days and minute < self.end)


def parse_hours(text: str) -> Hours:
    """Error: ValueError for what is not of the form above."""
    found = _FORM.fullmatch(text.strip().lower())
    times = [int(number) for number in found.groups()[1:]] if found else []
    start, end = (times[0] * 60 + times[1], times[2] * 60 + times[3]) if times else (-1, -1)
    if found is None or not (0 <= start < _DAY_MINUTES and 0 <= end <= _DAY_MINUTES):
        raise ValueError(f"{text!r} must be like '20:00-06:00' or 'mon-fri 20:00-06:00'")
    return Hours(_days(found[1], text), start, end)


def within(hours: Sequence[str], moment: datetime) -> bool:
    """Whether any of these hold at the moment (local time); True where there are none."""
    return not hours or any(parse_hours(text).hold(moment) for text in hours)


def _days(text: str | None, whole: str) -> frozenset[int]:
    """Weekdays of "mon-fri" or "sat,sun"; a range may run over the end of the week."""
    days: set[int] = set()
    for part in (text or "mon-sun").split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError(f"{whole!r} names a day that is none of {', '.join(_DAYS)}")
        begin, length = _DAYS.index(first), (_DAYS.index(last or first) - _DAYS.index(first)) % 7
        days |= {(begin + step) % 7 for step in range(length + 1)}
    return frozenset(days)
