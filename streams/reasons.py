"""Why a record became a dead letter: the one table of reason codes, shown by ``flywheel dead-letters``.

A test holds it against the codes that the data plane and the agents use, and against the README.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Reason(NamedTuple):
    """What a code means, and what makes a replay worth while."""

    meaning: str
    remedy: str


REASONS: Mapping[str, Reason] = {
    "bad_header": Reason(
        "The value is null or empty, or does not begin with the wire format's magic byte and schema id.",
        "Correct the producer; these bytes stay unreadable.",
    ),
    "unknown_schema": Reason(
        "No Avro record schema of the registry has the id that the value names.",
        "Register the producer's schema, then replay.",
    ),
    "bad_datum": Reason(
        "The bytes are not one whole datum of their schema: truncated, with bytes left over, or damaged.",
        "Correct the producer; these bytes stay unreadable.",
    ),
    "key_mismatch": Reason(
        "The record's key is not its prediction id, so that it would not meet its pair.",
        "Correct the producer, and let it send the event again with its key.",
    ),
    "too_large": Reason("The value has more than 1 MiB.", "Correct the producer; an event of ours is far smaller."),
    "foreign_schema": Reason(
        "The value is whole, but of another topic's or somebody else's schema.",
        "Find out who writes to this topic.",
    ),
    "unknown_model": Reason(
        "No model of that name is configured.", "Add it with 'flywheel init', start the workers again, then replay."
    ),
    "unknown_kind": Reason("The feedback's kind is neither truth nor user.", "Correct the producer."),
    "future_event": Reason(
        "The event time is further ahead of the broker's clock than future_skew_ms allows.",
        "Correct the producer's clock; replay once the time has come.",
    ),
    "bad_event_time": Reason(
        "The event time is before 1970, or the truth's due time is no possible time.", "Correct the producer."
    ),
    "foreign_features": Reason(
        "The features are not of the types that the model's contract has.",
        "Correct the producer, or the contract; then replay.",
    ),
    "orphan": Reason(
        "Feedback for a prediction that did not come within the join horizon (join_horizon_s).",
        "Find out why the prediction was not logged; log it, then replay.",
    ),
    "bad_event": Reason(
        "An event of the control plane that cannot be decoded.", "Find out who writes to this topic; then replay."
    ),
    "handler_failed": Reason(
        "The handler of a control-plane event failed; the worker's log has the traceback.",
        "Upgrade or repair what failed, then replay.",
    ),
}
UNKNOWN = Reason("A code of another version of Flywheel.", "Ask that version.")


def reason(code: str) -> Reason:
    """What a code means."""
    return REASONS.get(code, UNKNOWN)
