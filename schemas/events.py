"""The Avro envelopes of every topic, and the topics' names.

Inputs have one schema a model, made from its contract (:meth:`schemas.contract.Contract.input_schema`); all other
envelopes are the ``.avsc`` files beside this module.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).parent / "avro"
SOURCES = ("inputs", "predictions", "feedback")
"""The three topics of the data plane, in the order in which records of one broker timestamp are worked on."""
NOUNS = (
    *SOURCES,
    "summaries",
    "outcomes",
    "failures",
    "alerts",
    "labels",
    "retrain",
    "models",
    "dead-letters",
)
COMPACTED = frozenset({"models"})
SINGLE = frozenset({"summaries", "alerts", "labels", "retrain", "models"})
"""Topics of one partition: what decides needs to see everything, so one worker has them all and the others stand by."""
FEEDBACK_KINDS = ("truth", "user")
PREFIX = "flywheel"
REPLAY_HEADER = "flywheel-replay-of"
"""Header of a record that 'flywheel dead-letters replay' sent: CLUSTER/TOPIC/PARTITION/OFFSET of the first."""


def topic(noun: str) -> str:
    """The Kafka topic of a noun.

    >>> topic("feedback")
    'flywheel.feedback.v1'
    """
    assert noun in NOUNS, noun
    return f"{PREFIX}.{noun}.v1"


def partition_count(noun_: str, partitions: int) -> int:
    """How many partitions the topic of a noun has where the source topics have ``partitions``."""
    return 1 if noun_ in SINGLE else partitions


def noun(topic_name: str) -> str:
    """The noun of a topic, the inverse of :func:`topic`."""
    return topic_name.removeprefix(f"{PREFIX}.").removesuffix(".v1")


def subject(noun_: str, model: str | None = None) -> str:
    """The registry subject of a topic's values; inputs have one a model."""
    return f"{topic(noun_)}-{model}" if noun_ == "inputs" else f"{topic(noun_)}-value"


@cache
def _text(noun_: str) -> str:
    return (SCHEMAS / f"{noun_}.avsc").read_text(encoding="utf-8")


def envelope(noun_: str) -> dict[str, Any]:
    """The Avro schema of a topic other than inputs."""
    assert noun_ in NOUNS, noun_
    assert noun_ != "inputs", "inputs have one schema a model"
    schema: dict[str, Any] = json.loads(_text(noun_))
    return schema


def plane_alert(
    name: str, message: str, at_us: int, subject: str, place: tuple[str, int, int] | None = None,
    severity: str = "page", **detail: Any,
) -> dict[str, Any]:  # fmt: skip
    """The event of an alert about the running system itself, no model's; the same name is the same alert.

    Parameters
    ----------
    place
        Topic, partition and offset that it is about.
    """
    source, partition, offset = (None, None, None) if place is None else place
    return {
        "alert_id": f"plane/{name}", "incident_id": f"plane/{name}", "model": "", "version": "", "event_time": at_us,
        "severity": severity, "state": "opened", "channel": "plane", "subject": subject, "slice": "all",
        "window_start": None, "window_end": None, "topic": source, "partition": partition, "offset": offset,
        "message": message, "detail": json.dumps(detail, sort_keys=True),
    }  # fmt: skip
