"""A review item before it is stored: what the plane routes to people, its hashes, and what may be kept of it."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from labeling.policy import LabelingPolicy
from schemas.contract import Contract
from schemas.errors import UsageError

Value = str | float | int | bool | None
Kind = Literal["answer", "verdict"]
RULE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
AUDIT_RULE = "audit"
REDACTED = "[redacted]"
HASHED = "hash:"
HASH_CHARS = 32
"""128 bits of a SHA-256: enough that two of 10^9 inputs never meet."""
PREDICTION_ID_CHARS_MAX = 512
TEXT_CHARS_MAX = 10_000
"""Longest note or reason: a page; anything longer is a document."""


@dataclass(frozen=True)
class Position:
    """Where an input event lies in the log."""

    cluster: str
    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class NewItem:
    """One prediction that a rule picked for review.

    Attributes
    ----------
    selection_probability
        Probability with which the rule picks such a prediction: 1 for failures, the audit share for ``audit``.
    kind
        ``answer``: the person gives the label. ``verdict``: the truth is known, or late; the person says why the model
        was wrong and what to do with the row.
    facts
        Numbers that the feedback carried, such as the truth feed's value of an input.
    note, user_label
        What a user said about the prediction.
    severity
        Weight of the rule in the queue's order.
    occurrence
        Names the event behind it (say the feedback id). The same item with another occurrence is a further complaint,
        with the same one a redelivery.
    """

    prediction_id: str
    rule: str
    features: Mapping[str, Value]
    event_time_us: int
    policy: str = ""
    selection_probability: float = 1.0
    kind: Kind = "verdict"
    version: str = ""
    score: float | None = None
    label: str | None = None
    truth: str | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None
    user_label: str | None = None
    subject: str | None = None
    severity: float = 1.0
    occurrence: str = ""
    position: Position | None = None

    def __post_init__(self) -> None:
        if not RULE_NAME.fullmatch(self.rule):
            raise UsageError(f"'{self.rule[:80]}' is not a rule name.", action="Use letters, digits, . - and _.")
        if not 0.0 < self.selection_probability <= 1.0:
            raise UsageError(f"The selection probability of {self.prediction_id} is {self.selection_probability}.")
        if not 0 < len(self.prediction_id) <= PREDICTION_ID_CHARS_MAX or "\x00" in self.prediction_id:
            raise UsageError("A prediction id has 1 to 512 characters, and no NUL among them.")


def public_id(prediction_id: str, rule: str) -> str:
    """The item's name outside the database, equal to the failure's id.

    >>> public_id("p-7", "confident")
    'p-7/confident'
    """
    return f"{prediction_id}/{rule}"


def split_id(item_id: str) -> tuple[str, str]:
    """Prediction id and rule of a public id."""
    prediction_id, slash, rule = item_id.rpartition("/")
    if not slash:
        raise UsageError(f"'{item_id}' is not an item id.", action="It has the form PREDICTION/RULE.")
    return prediction_id, rule


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def clean_text(text: str) -> str:
    """A person's words as they are stored: bounded, and without NUL, which PostgreSQL cannot hold."""
    return text.replace("\x00", "")[:TEXT_CHARS_MAX]


def digest(value: Any, key: str = "") -> str:
    """A 128-bit hash of a value's canonical JSON, keyed when there is a key."""
    text = canonical(value).encode()
    if key:
        return hmac.new(key.encode(), text, hashlib.sha256).hexdigest()[:HASH_CHARS]
    return hashlib.sha256(text).hexdigest()[:HASH_CHARS]


def _finite(value: Value) -> Value:
    """JSON knows no NaN: a number that is none is a missing one."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Protector:
    """Applies the contract's and the policy's privacy marks before anything is stored.

    A personal value becomes a keyed hash, so that equal values can still be seen to be equal; without a key a
    hash could be reversed by trying names, so it is redacted like a secret one.
    """

    def __init__(self, policy: LabelingPolicy, contract: Contract | None) -> None:
        self.key = policy.hash_key.get_secret_value()
        marks = {f.name: f.sensitivity for f in contract.fields} if contract else {}
        marks.update(policy.sensitive)
        self.marks = {name: mark for name, mark in marks.items() if mark != "none"}
        self.facts = {f.fact: f.name for f in contract.fields if f.fact and f.name in self.marks} if contract else {}

    def protect(self, name: str, value: Value) -> Value:
        """The value as it may be stored."""
        mark = self.marks.get(name) or self.marks.get(self.facts.get(name, ""))
        if mark is None or value is None:
            return _finite(value)
        if mark == "personal" and self.key:
            return f"{HASHED}{digest([name, value], self.key)[:16]}"
        return REDACTED

    def protect_all(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """A mapping as it may be stored."""
        marks, facts = self.marks, self.facts
        return {
            name: self.protect(name, value) if name in marks or name in facts else _finite(value)
            for name, value in values.items()
        }

    def subject(self, subject: str | None) -> str | None:
        """The keyed hash under which a subject's items are found; None without a key."""
        return digest(["subject", subject], self.key) if subject is not None and self.key else None


def is_plain_text(value: object) -> bool:
    """Whether a stored value is a text that may be read, not one that was redacted or hashed."""
    return isinstance(value, str) and value != REDACTED and not value.startswith(HASHED)


def payload(new: NewItem, protector: Protector) -> dict[str, Any]:
    """What is stored of an item for the card."""
    return {
        "features": protector.protect_all(new.features),
        "facts": protector.protect_all(new.facts),
        "score": _finite(new.score),
        "label": new.label,
        "truth": new.truth,
        "version": new.version,
        "note": new.note[:TEXT_CHARS_MAX] if new.note else None,
        "user_label": new.user_label,
        "position": asdict(new.position) if new.position else None,
    }


def hashes(new: NewItem, key: str) -> tuple[str, str]:
    """``input_hash`` and ``task_hash``: the same input, and the same question about it."""
    input_hash = digest({name: _finite(value) for name, value in new.features.items()}, key)
    question = [input_hash, new.kind, new.label, new.truth]
    # A verdict is about one prediction and its circumstances; an answer is about the input alone.
    return input_hash, digest([*question, new.prediction_id] if new.kind == "verdict" else question)


def urgency(new: NewItem, cluster_size: int) -> float:
    """Expected value of a look: severity x surprise x what the answer says about others like it.

    Surprise of a wrong prediction is its distance from the truth, of an unanswered one its uncertainty. A cluster adds
    10 % per doubling up to 32 items: one verdict speaks for more rows, but must not bury the rest of the queue.
    """
    if new.score is None or not math.isfinite(new.score):
        surprise = 0.5
    elif new.kind == "verdict" and new.truth is not None and new.label is not None:
        confidence = max(min(abs(2.0 * new.score - 1.0), 1.0), 0.0)
        surprise = confidence if new.truth != new.label else 1.0 - confidence
    else:
        surprise = 1.0 - min(abs(2.0 * new.score - 1.0), 1.0)
    size = 1.0 + 0.1 * min(math.log2(1 + cluster_size), 5.0)
    return round(new.severity * (0.5 + 0.5 * surprise) * size, 6)
