"""A batch of events is decoded once and handed over in one go; one that is at fault stops no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from schemas.database import open_database
from schemas.errors import DecodeError, RegistryUnreachableError
from streams.agents import pump
from streams.agents.pump import Given
from streams.tables import dead_letter

NAME = "flywheel.alerts.v1"


class Codec:
    """Values are texts; some cannot be decoded, and at first no schema can be had."""

    def __init__(self, away: int = 0) -> None:
        self.away, self.decoded = away, 0

    def decode(self, value: str) -> dict[str, Any]:
        if value == "b" and self.away:
            self.away -= 1
            raise RegistryUnreachableError("The registry is away.")
        self.decoded += 1
        if value == "damaged":
            raise DecodeError("It is no event.")
        return {"text": value}


@pytest.fixture
def engine(tmp_path: Path) -> sa.Engine:
    return open_database(f"sqlite:///{tmp_path / 'flywheel.db'}")


def work(engine: sa.Engine, codec: Codec, handle: Callable[[Sequence[Given]], None], values: Sequence[str]) -> None:
    runtime: Any = SimpleNamespace(codec=codec, engine=engine, cluster="c")
    messages = [
        SimpleNamespace(topic=NAME, partition=0, offset=at, timestamp=1.0, value=value)
        for at, value in enumerate(values)
    ]
    given: list[Given] = []
    first = partial(pump._decode_and_handle, runtime, handle, messages, given)
    asyncio.run(pump._hand_over(runtime, handle, first, given, NAME))


def letters(engine: sa.Engine) -> list[tuple[int, str]]:
    with engine.connect() as connection:
        found = connection.execute(sa.select(dead_letter.c.offset, dead_letter.c.reason).order_by("offset"))
        return [tuple(row) for row in found]


def test_an_event_at_fault_is_set_aside_and_the_others_are_handled_in_order(engine: sa.Engine) -> None:
    calls: list[list[str]] = []

    def handle(given: Sequence[Given]) -> None:
        calls.append([each.record["text"] for each in given])
        if any(each.record["text"] == "wrong" for each in given):
            raise ValueError("not this one")

    work(engine, Codec(), handle, ["a", "wrong", "damaged", "c"])
    assert calls == [["a", "wrong", "c"], ["a"], ["wrong"], ["c"]]
    assert letters(engine) == [(1, pump.REASON_HANDLER), (2, pump.REASON_EVENT)]


def test_what_will_pass_is_tried_again_without_decoding_again(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "RETRY_S", (0.0,))
    calls: list[list[str]] = []

    def handle(given: Sequence[Given]) -> None:
        calls.append([each.record["text"] for each in given])
        if len(calls) < 3:
            raise pump.NotYetError("Its inputs are on their way.")

    codec = Codec(away=2)
    work(engine, codec, handle, ["a", "b"])
    assert calls == [["a", "b"]] * 3
    assert codec.decoded == 2 + 2  # "a" before each time that the registry was away
    assert letters(engine) == []


def test_a_batch_of_which_nothing_can_be_decoded_is_handed_to_nobody(engine: sa.Engine) -> None:
    def handle(_: Sequence[Given]) -> None:
        raise AssertionError

    work(engine, Codec(), handle, ["damaged", "damaged"])
    assert letters(engine) == [(0, pump.REASON_EVENT), (1, pump.REASON_EVENT)]
