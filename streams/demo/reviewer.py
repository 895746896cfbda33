"""The simulated reviewer of ``--auto``: what a sensible person would press, from what the card shows and nothing else.

The card of a flight holds the input and the feedback event; no other row, no score of another model, no knowledge of
the planted fault. Whatever these rules decide is shown as *simulated*.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streams.demo.digits import LABELS, true_label

INPUT_BROKEN = "input_broken"
MEANING_CHANGED = "meaning_changed"
UNPREDICTABLE = "unpredictable"
TRUTH_WRONG = "truth_wrong"
FEATURE = "dep_delay_known"

DISAGREEMENT_MIN = 5.0
"""The contract's tolerance: the healthy feeds agree to the minute, so anything above rounding is a disagreement."""
HELD_MIN = 30.0
"""This much over the usual minutes on the ground or in the air, and the flight was held."""


@dataclass(frozen=True)
class Review:
    """What the reviewer presses: a verdict, or a label, or both, the feature at fault, and why in words."""

    verdict: str | None
    label: str | None
    reason: str
    feature: str | None = None


def review_flight(card: Mapping[str, Any]) -> Review:
    """Judge one failed prediction of a flight.

    Parameters
    ----------
    card
        ``features`` (the input, by name or as the lines of ``flywheel labels next --json``), ``facts`` (of the feedback
        event, by name) and ``truth`` (its label, None if no truth came).

    Examples
    --------
    >>> facts = {"dep_delay": 52.0, "ground_min": 31.0, "usual_ground_min": 28.0}
    >>> review_flight({"features": {"dep_delay_known": 0.0}, "facts": facts, "truth": "late"}).verdict
    'input_broken'
    """
    facts = card.get("facts") or {}
    if card.get("truth") is None:
        return Review(TRUTH_WRONG, "late", "No arrival within 6 hours of the schedule: diverted, and so late.")
    given, true = _features(card).get(FEATURE), facts.get("dep_delay")
    if true is not None and given is None:
        return Review(INPUT_BROKEN, None, f"The delay is missing; the truth feed says {true:+.0f} min.", FEATURE)
    if true is not None and abs(given - true) > DISAGREEMENT_MIN:
        # A zero below the truth is a default value; any other difference is a feed that measures something else.
        verdict = INPUT_BROKEN if given == 0.0 and true > 0.0 else MEANING_CHANGED
        return Review(verdict, None, f"The input says {given:+.0f} min, the truth feed {true:+.0f} min.", FEATURE)
    for where, name in (("on the ground", "ground_min"), ("in the air", "air_min")):
        spent, usual = facts.get(name), facts.get(f"usual_{name}")
        if spent is not None and usual is not None and spent > usual + HELD_MIN:
            return Review(UNPREDICTABLE, None, f"Held {where}: {spent:.0f} min, usually {usual:.0f}.")
    return Review(UNPREDICTABLE, None, "Inputs and truth agree, and nothing on the card explains it.")


def _features(card: Mapping[str, Any]) -> Mapping[str, Any]:
    shown = card.get("features") or {}
    return shown if isinstance(shown, Mapping) else {line["name"]: line["value"] for line in shown}


def review_digit(prediction_id: str, error_rate: float = 0.0, seed: int = 0) -> Review:
    """Say what a picture shows; wrong with probability ``error_rate``, always the same way for one id and seed.

    >>> review_digit("digit-0007").label
    '7'
    """
    truth = true_label(prediction_id)
    digest = hashlib.sha256(f"{seed}/{prediction_id}".encode()).digest()
    if int.from_bytes(digest[:8]) / 2**64 >= error_rate:
        return Review(None, truth, "As the picture shows.")
    others = [label for label in LABELS if label != truth]
    return Review(None, others[digest[8] % len(others)], "A slip of the finger.")
