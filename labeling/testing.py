"""Helpers for tests of what uses the store: a clock that stands still, and items that are quick to make."""

from __future__ import annotations

from typing import Any

from labeling.items import NewItem
from schemas.contract import Contract, parse_contract
from schemas.times import SECOND_US, parse_time

START_US = parse_time("2026-03-02T09:00:00+00:00")


class ManualClock:
    """A clock that moves only when it is told to."""

    def __init__(self, now_us: int = START_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_us += round(seconds * SECOND_US)


def small_contract() -> Contract:
    """A binary contract with two numbers, one of which the truth feed reports too, and a carrier."""
    return parse_contract(
        {
            "type": "record",
            "name": "Small",
            "model": "small",
            "version": 1,
            "target": {"kind": "binary", "labels": ["late", "on_time"], "positive": "late"},
            "facts": ["delay", "held_min"],
            "fields": [
                {"name": "carrier", "type": "string", "domain": ["AA", "EV", "UA"]},
                {"name": "delay_known", "type": "double", "fact": "delay", "tolerance": 5.0, "unit": "min"},
                {"name": "wind", "type": ["null", "double"], "min": 0.0, "max": 100.0},
                {"name": "name", "type": ["null", "string"], "sensitivity": "personal"},
            ],
        }
    )


def new_item(number: int, **changes: Any) -> NewItem:
    """A confident error, one minute after the one before it; ``features`` are merged into the usual ones."""
    features = {"carrier": "AA", "delay_known": 3.0, "wind": 10.0, "name": None} | changes.pop("features", {})
    values: dict[str, Any] = {
        "prediction_id": f"p{number}",
        "rule": "confident",
        "policy": "abcd",
        "features": features,
        "event_time_us": START_US + 60 * SECOND_US * number,
        "version": "1",
        "score": 0.95,
        "label": "late",
        "truth": "on_time",
        "facts": {"delay": 3.0, "held_min": 10.0},
    }
    return NewItem(**(values | changes))
