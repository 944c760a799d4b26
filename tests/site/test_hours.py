from datetime import datetime

import pytest

from fedimaging.site.hours import parse_hours, within

MONDAY, FRIDAY, SATURDAY, SUNDAY = 23, 27, 28, 29  # of November 2026


def at(day: int, time: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-{day}T{time}")


@pytest.mark.parametrize(("hours", "day", "time", "held"), [
    ("09:00-17:00", MONDAY, "08:59", False), ("09:00-17:00", MONDAY, "09:00", True), ("09:00-17:00", MONDAY, "16:59", True),
    ("09:00-17:00", MONDAY, "17:00", False), ("20:00-06:00", MONDAY, "20:00", True), ("20:00-06:00", MONDAY, "05:59", True),
    ("20:00-06:00", MONDAY, "12:00", False), ("mon-fri 20:00-06:00", MONDAY, "05:00", False),  # Sunday's night is not in it
    ("mon-fri 20:00-06:00", SATURDAY, "05:00", True), ("mon-fri 20:00-06:00", SATURDAY, "20:00", False),
    ("Sat,SUN 00:00-24:00", SUNDAY, "23:59", True), ("sat,sun 00:00-24:00", MONDAY, "00:00", False),
    ("fri-mon 10:00-11:00", SUNDAY, "10:30", True), ("fri-mon 10:00-11:00", FRIDAY, "10:30", True),
    ("22:00-00:00", MONDAY, "23:00", True), ("22:00-00:00", MONDAY, "00:00", False), ("08:00-08:00", MONDAY, "07:00", True),
])  # fmt: skip
def test_when_hours_hold(hours: str, day: int, time: str, held: bool) -> None:
    assert parse_hours(hours).hold(at(day, time)) is held
    assert within([hours], at(day, time)) is held


def test_no_hours_are_all_hours_and_several_add_up() -> None:
    assert within([], at(MONDAY, "12:00"))
    assert within(["20:00-06:00", "mon 12:00-13:00"], at(MONDAY, "12:30"))
    assert not within(["20:00-06:00", "mon 12:00-13:00"], at(FRIDAY, "12:30"))


@pytest.mark.parametrize("text", [
    "", "at night", "20-06", "24:00-06:00", "20:00-24:01", "20:60-21:00", "mo 10:00-11:00", "mon- 10:00-11:00x",
])  # fmt: skip
def test_what_is_no_hours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be like '20:00-06:00'|names a day that is none of"):
        parse_hours(text)
