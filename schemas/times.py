"""Integer microseconds inside, aware datetimes at the edges."""

from __future__ import annotations

import time
from datetime import UTC, datetime

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_us() -> int:
    """Processing time, in microseconds since 1970 UTC."""
    return time.time_ns() // 1000


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 UTC of an aware datetime, exactly.

    >>> to_us(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    1000000
    """
    assert moment.tzinfo is not None, "naive datetimes are not allowed"
    delta = moment - EPOCH
    return (delta.days * 86_400 + delta.seconds) * SECOND_US + delta.microseconds


def from_us(us: int) -> datetime:
    """The aware UTC datetime of ``us`` microseconds since 1970."""
    return datetime.fromtimestamp(us // SECOND_US, UTC).replace(microsecond=us % SECOND_US)


def parse_time(text: str) -> int:
    """Microseconds of an ISO 8601 text; a text without a zone is UTC.

    Raises
    ------
    ValueError
        If the text is not ISO 8601.

    >>> parse_time("1970-01-01T00:00:01+00:00")
    1000000
    """
    moment = datetime.fromisoformat(text)
    return to_us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def format_us(us: int | None) -> str:
    """ISO 8601 in UTC, to the second; ``-`` for None.

    >>> format_us(1_500_000)
    '1970-01-01T00:00:01Z'
    """
    return "-" if us is None else from_us(us).strftime("%Y-%m-%dT%H:%M:%SZ")
