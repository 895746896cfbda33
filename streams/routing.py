"""From a failure event (ids and offsets) to a review item (with what a person needs to see)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from labeling.items import NewItem, Position
from schemas import archive
from schemas.contract import Contract
from schemas.events import topic
from schemas.registry import Codec
from streams.plane.plan import RULE_AUDIT, RULE_NO_TRUTH
from streams.records import as_row
from streams.seek import Place, read_records

LogPlace = tuple[str, int, int]
"""Cluster, partition and offset."""
NO_RECORD = -1
"""The offset of what a failure does not have; a lower one is of an earlier log (see ``streams.plane.restore``)."""


@dataclass(frozen=True)
class Payloads:
    """Archived events by (cluster, partition, offset)."""

    inputs: Mapping[tuple[str, int, int], dict[str, Any]]
    feedback: Mapping[tuple[str, int, int], dict[str, Any]]


NOTHING = Payloads({}, {})


def fetch(root: Path, failures: Sequence[Mapping[str, Any]], known: Payloads = NOTHING) -> Payloads:
    """The inputs and feedback that failures name, from the archive; what is known already is not read again."""
    return Payloads(
        archive.retried(lambda: _fetch(root, "inputs", failures, "input_offset", known.inputs)),
        archive.retried(lambda: _fetch(root, "feedback", failures, "feedback_offset", known.feedback)),
    )


def _fetch(
    root: Path,
    noun: str,
    failures: Sequence[Mapping[str, Any]],
    offset: str,
    known: Mapping[tuple[str, int, int], dict[str, Any]],
) -> dict[tuple[str, int, int], dict[str, Any]]:
    found = dict(known)
    earlier = {
        (f["model"], f["prediction_id"]): (f["cluster"], f["partition"], f[offset])
        for f in failures
        if f[offset] < NO_RECORD
    }
    missing = {name: place for name, place in earlier.items() if place not in found}
    if missing:
        found |= _of_earlier_logs(root, noun, missing)
    wanted = {(f["cluster"], f["partition"], f[offset]) for f in failures if f[offset] >= 0} - set(found)
    if not wanted:
        return found
    by_place: dict[tuple[str, int], list[int]] = {}
    for cluster, partition, at in sorted(wanted):
        by_place.setdefault((cluster, partition), []).append(at)
    for file, inside in archive.holding(archive.files(root, noun), by_place):
        rows = pl.read_parquet(file.path).filter(pl.col("offset").is_in(inside))
        for row in rows.iter_rows(named=True):
            found[file.cluster, file.partition, row["offset"]] = row
    return found


def _of_earlier_logs(
    root: Path, noun: str, places: Mapping[tuple[str, str], LogPlace]
) -> dict[LogPlace, dict[str, Any]]:
    """Records of logs that are gone (earlier embedded brokers), by model and prediction id."""
    rows = archive.scan(root, noun).filter(pl.col("prediction_id").is_in([name for _, name in places])).collect()
    if not rows.height:
        return {}
    rows = rows.sort("broker_ts", "cluster", "offset")  # the first input of an id counts, and the last of its feedback
    own = rows.unique(["model", "prediction_id"], keep="first" if noun == "inputs" else "last")
    named = (((row["model"], row["prediction_id"]), row) for row in own.iter_rows(named=True))
    return {places[name]: row for name, row in named if name in places}


def fetch_from_log(bootstrap: str, codec: Codec, failures: Sequence[Mapping[str, Any]], known: Payloads) -> Payloads:
    """The inputs and feedback that failures name, from the topics themselves where the archive does not have them.

    A worker that dies right after it sent a failure archives no more, and its heir may be long in coming.

    Parameters
    ----------
    failures
        Of the log at ``bootstrap``.
    known
        What the archive had.

    Raises
    ------
    BrokerUnreachableError
        If the broker does not answer.
    """
    found = {"inputs": dict(known.inputs), "feedback": dict(known.feedback)}
    wanted: dict[Place, dict[tuple[str, int, int], dict[str, Any]]] = {}
    for failure in failures:
        for noun, column in (("inputs", "input_offset"), ("feedback", "feedback_offset")):
            place = (failure["cluster"], failure["partition"], failure[column])
            if place[2] >= 0 and place not in found[noun]:
                wanted[topic(noun), place[1], place[2]] = found[noun]
    for at, message in read_records(bootstrap, wanted).items():
        cluster = failures[0]["cluster"]
        wanted[at][cluster, at[1], at[2]] = as_row(codec.decode(message.value()), message, cluster)
    return Payloads(found["inputs"], found["feedback"])


def is_there(payloads: Payloads, failure: Mapping[str, Any]) -> bool:
    """Whether everything that a failure names was found; offsets below 0 name nothing, or an earlier log's record."""
    place = (failure["cluster"], failure["partition"])
    wanted_input, wanted_feedback = failure["input_offset"], failure["feedback_offset"]
    return (wanted_input < 0 or (*place, wanted_input) in payloads.inputs) and (
        wanted_feedback < 0 or (*place, wanted_feedback) in payloads.feedback
    )


def item_of(failure: Mapping[str, Any], payloads: Payloads, contract: Contract) -> NewItem:
    """The review item of a failure.

    A verdict is asked where the truth is known or overdue, an answer where only a person can give it.
    """
    place = (failure["cluster"], failure["partition"])
    asked = payloads.inputs.get((*place, failure["input_offset"]), {})
    said = payloads.feedback.get((*place, failure["feedback_offset"]), {})
    facts = {name: said.get(f"fact_{name}") for name in contract.facts}
    is_answer = failure["truth"] is None and failure["rule"] != RULE_NO_TRUTH
    position = Position(failure["cluster"], topic("inputs"), failure["partition"], failure["input_offset"])
    return NewItem(
        prediction_id=failure["prediction_id"],
        rule=failure["rule"],
        features={name: asked.get(name) for name in contract.feature_names},
        event_time_us=failure["event_time"],
        policy=failure["policy"],
        selection_probability=failure["selection_probability"],
        kind="answer" if is_answer else "verdict",
        version=failure["version"],
        score=failure["score"],
        label=failure["label"],
        truth=failure["truth"],
        facts={name: value for name, value in facts.items() if value is not None},
        note=said.get("note"),
        user_label=failure["user"],
        subject=asked.get("subject"),
        severity=0.25 if failure["rule"] == RULE_AUDIT else 1.0,
        occurrence=said.get("feedback_id") or "",
        position=position if failure["input_offset"] >= 0 else None,
    )
