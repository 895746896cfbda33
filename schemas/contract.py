"""A model's contract: one ``.avsc`` whose fields are the model's features and carry their expectations.

The file is at once the Avro schema of the features, the data test of the live stream and the privacy policy.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from schemas.errors import ContractError

Kind = Literal["number", "category", "boolean"]
KINDS: dict[str, Kind] = {"string": "category", "double": "number", "long": "number", "boolean": "boolean"}
TOLERANCES = ("tolerance", "relative_tolerance")
SENSITIVITIES = ("none", "personal", "secret")
TARGET_KINDS = ("binary", "multiclass", "regression")
FIELD_ATTRIBUTES = frozenset(
    "name type doc default min max domain max_null_rate unit owner sensitivity reason slices fact tolerance"
    " relative_tolerance max_age_s".split()
)
RECORD_ATTRIBUTES = frozenset("type name namespace doc fields model version target facts timezone fairness".split())
ERRORS_IN_SCALE = 4.0
"""A probability that errs by a quarter (root mean square) is usual; so a regression's errors are weighed likewise."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SLICE_CHARS_MAX = 256
"""Of ``field=value``, as it stands in summaries and in the database."""
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FEATURES_MAX = 1_000
"""The counters have room for so many (see :mod:`schemas.parts`)."""
RESERVED = frozenset("prediction_id model event_time subject features offset broker_ts cluster partition".split())
"""Columns that stand beside the features in the envelope and the archive."""


@dataclass(frozen=True)
class Slice:
    """The rows whose field has one value; the slice of all rows is the text ``all``."""

    field: str
    value: str

    @property
    def name(self) -> str:
        """How the slice is called in summaries, alerts and pages.

        >>> Slice("origin", "JFK").name
        'origin=JFK'
        """
        return f"{self.field}={self.value}"


@dataclass(frozen=True)
class Field:
    """One feature and what is expected of it."""

    name: str
    avro_type: str
    is_nullable: bool
    min: float | None = None
    max: float | None = None
    domain: tuple[str, ...] | None = None
    max_null_rate: float | None = None
    unit: str | None = None
    owner: str | None = None
    sensitivity: str = "none"
    reason: str | None = None
    slices: tuple[str, ...] = ()
    fact: str | None = None
    tolerance: float = 0.0
    relative_tolerance: float = 0.0
    max_age_s: float | None = None
    """Of a feed's own time stamp, seconds since 1970: how much older than the prediction it may be."""

    @property
    def kind(self) -> Kind:
        """How the feature is profiled."""
        return KINDS[self.avro_type]

    def allowed(self, true: float) -> float:
        """How far a value may be from what feedback says it was: the larger one of the two tolerances.

        >>> Field("delay", "double", False, tolerance=5.0, relative_tolerance=0.1).allowed(-200.0)
        20.0
        """
        return max(self.tolerance, self.relative_tolerance * abs(true))


@dataclass(frozen=True)
class Target:
    """What the model predicts.

    ``undecided`` is the label that a row has when its truth is due and has not come (None: it has none). ``unit`` is
    about the size of a regression's usual error: values are counted in it, so that sums of fourth powers have room.
    """

    kind: str
    labels: tuple[str, ...] = ()
    positive: str | None = None
    undecided: str | None = None
    truth_timeout_s: int | None = None
    unit: float = 1.0

    @property
    def answer_scale(self) -> float:
        """What a change of the answers is weighed by: 1 for a probability, of a regression some usual errors.

        >>> Target("binary", ("no", "yes"), "yes").answer_scale, Target("regression", unit=50.0).answer_scale
        (1.0, 200.0)
        """
        return ERRORS_IN_SCALE * self.unit if self.kind == "regression" else 1.0


@dataclass(frozen=True)
class Contract:
    """A parsed contract."""

    model: str
    version: int
    fields: tuple[Field, ...]
    target: Target
    facts: tuple[str, ...]
    timezone: str
    document: dict[str, Any] = field(compare=False, repr=False)
    fairness: tuple[tuple[str, str], ...] = ()
    """Pairs of declared slices that should be treated alike."""

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the document in canonical JSON."""
        text = json.dumps(self.document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names in the order of the file."""
        return tuple(f.name for f in self.fields)

    def slices(self) -> tuple[Slice, ...]:
        """The declared slices, in the order of the file."""
        return tuple(Slice(f.name, value) for f in self.fields for value in f.slices)

    def paired(self) -> dict[str, str]:
        """The fields of which feedback says what they really were, and the facts that say it."""
        return {f.name: f.fact for f in self.fields if f.fact is not None}

    def input_schema(self) -> dict[str, Any]:
        """The Avro schema of this model's input events: the envelope around the features."""
        plain = {"type", "name", "fields"}
        features = {
            "type": "record",
            "name": self.document["name"],
            "namespace": self.document.get("namespace", "flywheel.features"),
            "fields": [
                {k: v for k, v in f.items() if k in {"name", "type", "default"}} for f in self.document["fields"]
            ],
        }
        assert plain <= features.keys()
        return {
            "type": "record",
            "name": "Input",
            "namespace": "flywheel",
            "doc": "What a model was asked.",
            "fields": [
                {"name": "prediction_id", "type": "string", "doc": "also the Kafka key"},
                {"name": "model", "type": "string"},
                {"name": "event_time", "type": "long", "doc": "microseconds since 1970 UTC"},
                {"name": "subject", "type": ["null", "string"], "doc": "whom the event is about, for erasure"},
                {"name": "features", "type": features},
            ],
        }


def load_contract(path: Path) -> Contract:
    """Read and check a contract file.

    Raises
    ------
    ContractError
        If the file cannot be read or breaks a rule; the message names the place.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ContractError(f"The contract {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ContractError(f"The contract {path} is not JSON: {error}.") from error
    return parse_contract(document, str(path))


def parse_contract(document: Any, place: str = "contract") -> Contract:
    """A contract from its parsed JSON; see :func:`load_contract`."""
    if not isinstance(document, dict) or document.get("type") != "record":
        raise ContractError(f"{place} is not an Avro record.")
    _known(document, RECORD_ATTRIBUTES, place)
    for name in ("name", "model", "fields", "target"):
        if name not in document:
            raise ContractError(f"{place} has no '{name}'.")
    if not MODEL_NAME.fullmatch(str(document["model"])):
        raise ContractError(f"{place}: '{document['model']}' is not a model name (letters, digits, . _ -).")
    rows = document["fields"]
    if not isinstance(rows, list) or not 0 < len(rows) <= FEATURES_MAX:
        raise ContractError(f"{place} must have 1 to {FEATURES_MAX} fields.")
    fields = tuple(_field(row, place) for row in rows)
    names = [f.name for f in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ContractError(f"{place}: the field '{twice[0]}' stands twice.")
    taken = sorted(RESERVED.intersection(names))
    if taken:
        raise ContractError(f"{place}: '{taken[0]}' is the name of an event's own column; call the field otherwise.")
    listed = document.get("facts", [])
    if not isinstance(listed, list) or not all(isinstance(name, str) and NAME.fullmatch(name) for name in listed):
        raise ContractError(f"{place}: 'facts' must be a list of names.")
    facts = tuple(listed)
    for f in fields:
        if f.fact is not None and f.fact not in facts:
            raise ContractError(f"{place}.{f.name}: the fact '{f.fact}' is not among the record's 'facts'.")
    timezone = str(document.get("timezone", "UTC"))
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ContractError(f"{place}: '{timezone}' is not a time zone.") from error
    version = document.get("version", 1)
    if not isinstance(version, int) or version < 1:
        raise ContractError(f"{place}: 'version' must be a whole number from 1.")
    target = _target(document["target"], place)
    pairs = _pairs(document.get("fairness", []), fields, place)
    return Contract(str(document["model"]), version, fields, target, facts, timezone, document, pairs)


def _pairs(given: Any, fields: tuple[Field, ...], place: str) -> tuple[tuple[str, str], ...]:
    known = {Slice(f.name, value).name for f in fields for value in f.slices}
    is_list = isinstance(given, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in given)
    if not is_list or not all(isinstance(name, str) for pair in given for name in pair):
        raise ContractError(f"{place}: 'fairness' must be a list of pairs of slices, such as [['sex=f', 'sex=m']].")
    for name in (name for pair in given for name in pair):
        if name not in known:
            raise ContractError(f"{place}: 'fairness' names '{name}', which is not a declared slice.")
    return tuple((first, second) for first, second in given)


def _known(given: dict[str, Any], allowed: frozenset[str], place: str) -> None:
    for key in given:
        if key not in allowed:
            near = get_close_matches(key, allowed, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ContractError(f"{place}: unknown attribute '{key}'.{hint}")


def _field(row: Any, place: str) -> Field:
    if not isinstance(row, dict) or not NAME.fullmatch(str(row.get("name", ""))):
        raise ContractError(f"{place}: a field has no valid Avro name: {str(row)[:80]}.")
    place = f"{place}.{row['name']}"
    _known(row, FIELD_ATTRIBUTES, place)
    avro_type, is_nullable = _type(row.get("type"), place)
    if row.get("sensitivity", "none") not in SENSITIVITIES:
        raise ContractError(f"{place}: 'sensitivity' must be one of {', '.join(SENSITIVITIES)}.")
    for name in ("min", "max", "max_null_rate", "max_age_s", *TOLERANCES):
        if name in row and (isinstance(row[name], bool) or not isinstance(row[name], int | float)):
            raise ContractError(f"{place}: '{name}' must be a number.")
        if name in row and not math.isfinite(row[name]):
            raise ContractError(f"{place}: '{name}' must be finite; leave it out where there is no bound.")
    if row.get("min", -math.inf) > row.get("max", math.inf):
        raise ContractError(f"{place}: 'min' is greater than 'max', so that every value would be outside.")
    if not 0 <= row.get("max_null_rate", 0) <= 1:
        raise ContractError(f"{place}: 'max_null_rate' is a share, from 0 to 1.")
    for name in ("min", "max", "max_age_s", *TOLERANCES):
        if name in row and KINDS[avro_type] != "number":
            raise ContractError(f"{place}: '{name}' needs a field of numbers.")
    for name in TOLERANCES:
        if name in row and not 0 <= row[name] < math.inf:
            raise ContractError(f"{place}: '{name}' must not be negative.")
    if "fact" in row and KINDS[avro_type] == "category":
        raise ContractError(
            f"{place}: 'fact' needs a field of numbers or booleans: feedback brings facts as numbers, and a text is "
            "held against none. Leave it out, or log what is to be compared as a number or boolean of its own."
        )
    for name in ("domain", "slices"):
        if name in row and not (isinstance(row[name], list) and all(isinstance(v, str) for v in row[name])):
            raise ContractError(f"{place}: '{name}' must be a list of texts.")
        if row.get(name) and KINDS[avro_type] != "category":
            raise ContractError(f"{place}: '{name}' needs a field of texts.")
    for value in row.get("slices", ()):
        if len(f"{row['name']}={value}") > SLICE_CHARS_MAX:
            told = f"'{value[:40]}...' has {len(value):,}, and its name stands before it"
            raise ContractError(f"{place}: a slice has at most {SLICE_CHARS_MAX} characters; {told}.")
    kept = {k: v for k, v in row.items() if k not in {"name", "type", "doc", "default", "domain", "slices"}}
    domain = tuple(row["domain"]) if "domain" in row else None
    return Field(str(row["name"]), avro_type, is_nullable, domain=domain, slices=tuple(row.get("slices", ())), **kept)


def _type(given: Any, place: str) -> tuple[str, bool]:
    if isinstance(given, str) and given in KINDS:
        return given, False
    if isinstance(given, list) and len(given) == 2 and "null" in given:
        other = next((t for t in given if t != "null"), None)
        if other in KINDS:
            return str(other), True
    raise ContractError(f"{place}: the type must be {', '.join(KINDS)}, or one of them with null.")


def _target(given: Any, place: str) -> Target:
    place = f"{place}.target"
    if not isinstance(given, dict) or given.get("kind") not in TARGET_KINDS:
        raise ContractError(f"{place}: 'kind' must be one of {', '.join(TARGET_KINDS)}.")
    _known(given, frozenset(Target.__dataclass_fields__), place)
    labels = tuple(str(label) for label in given.get("labels", ()))
    if given["kind"] != "regression" and len(labels) < 2:
        raise ContractError(f"{place}: 'labels' must name at least two labels.")
    if given["kind"] == "binary" and (len(labels) != 2 or given.get("positive") not in labels):
        raise ContractError(f"{place}: a binary target has two 'labels', one of them 'positive'.")
    if given.get("undecided") is not None and given["undecided"] not in labels:
        raise ContractError(f"{place}: 'undecided' must be one of the labels.")
    unit = given.get("unit", 1.0)
    if isinstance(unit, bool) or not isinstance(unit, int | float) or not 0 < unit < math.inf:
        raise ContractError(f"{place}: 'unit' must be a positive number.")
    if unit != 1 and given["kind"] != "regression":
        raise ContractError(f"{place}: 'unit' is for regressions.")
    timeout = given.get("truth_timeout_s")
    return Target(given["kind"], labels, given.get("positive"), given.get("undecided"), timeout, float(unit))
