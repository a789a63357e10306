"""Dates as they stand in names, and their order."""

from __future__ import annotations

import re
from collections.abc import Sequence

# a year, perhaps with month and day, with or without separators: S2_20200317_L2A, 2020-03-17
_DATE = re.compile(
    r"(?<!\d)(?P<y>(?:19|20)\d\d)"
    r"(?:(?P<s>[-_.]?)(?P<m>0[1-9]|1[0-2])(?:(?P=s)(?P<d>0[1-9]|[12]\d|3[01]))?)?(?!\d)"
)


def date_in(name: str) -> str | None:
    """The date in a name, as far as it is told; None if there is none.

    >>> date_in("S2A_MSIL2A_20200317T100021"), date_in("lake_2020_03"), date_in("1985")
    ('2020-03-17', '2020-03', '1985')
    >>> date_in("T32TMS_B04_10m") is None
    True
    """
    found = _DATE.search(name.replace("T", " "))
    return None if found is None else "-".join(p for p in found.group("y", "m", "d") if p)


def chronological(dates: Sequence[str]) -> list[int]:
    """Places of the dates, oldest first; as they come if one of them is no date.

    >>> chronological(["2020-07", "1985", "2020"]), chronological(["before", "1985"])
    ([1, 2, 0], [0, 1])
    """
    places = range(len(dates))
    return sorted(places, key=dates.__getitem__) if all(map(_DATE.match, dates)) else list(places)


def repeated(dates: Sequence[str]) -> str | None:
    """The first date that stands there twice; None if each is alone.

    >>> repeated(["1985", "1990", "1985"]), repeated(["1985", "1990"])
    ('1985', None)
    """
    return next((date for date in dates if dates.count(date) > 1), None)
