"""What the plane does for one model: columns of events to the narrow rows of the join store.

A pending input is its cells (one byte a feature), its declared slices (one byte a slice field) and one bit a feature
for "outside the contract"; the payload itself stays on the topic and in the archive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.contract import Contract, Field
from schemas.errors import ConfigError
from schemas.parts import ALL_SLICE
from schemas.profile import CELL_NEW, CELL_NULL, LABEL_FEATURE, SCORE_FEATURE, FeatureProfile, Profile
from schemas.times import SECOND_US
from streams.plane.columns import factorized, filled, out_of_domain, out_of_range, physical
from streams.plane.store import Hashes, Rows, row_type

TOPIC_INPUTS, TOPIC_PREDICTIONS, TOPIC_FEEDBACK = range(3)
ORDER_TOPICS = 4
ORDER_OF_TOPIC = (0, 1, 3)
"""Place of a topic's records among those of one broker timestamp."""
ORDER_TIMER = 2
"""Time-outs come right after the prediction that let them run out: feedback of the same timestamp may still be to come
when that prediction is worked on."""
TOPIC_OF_ORDER = (TOPIC_INPUTS, TOPIC_PREDICTIONS, TOPIC_PREDICTIONS, TOPIC_FEEDBACK)

NO_LABEL = 255
OTHER_LABEL = 254
"""A label that the contract does not name."""
KIND_TRUTH, KIND_USER = 0, 1
USER_RIGHT, USER_WRONG, USER_EDITED = 0, 1, 2
USER_WORDS = ("right", "wrong", "edited")
USER_SERIES = pl.Series([*USER_WORDS, *[None] * (NO_LABEL - 2)], dtype=pl.String)
"""Their words, by code; null at NO_LABEL."""
RULE_NO_TRUTH = "no_truth"
RULE_AUDIT = "audit"
HASH_SEEDS = (0x5EED_0001, 0x5EED_0002)
DAY_US = 86_400 * SECOND_US
SLICE_VALUES_MAX = 250


class FailureRuleError(ConfigError):
    """A failure rule is not a usable SQL expression."""


def hashes(ids: pl.Series) -> tuple[Hashes, Hashes]:
    """128 bits of every id; stable for one version of polars only, which the store's stamp names."""
    return ids.hash(HASH_SEEDS[0]).to_numpy(), ids.hash(HASH_SEEDS[1]).to_numpy()


@dataclass
class Versions:
    """The (version, role) pairs seen, as small integers."""

    names: list[tuple[str, str]] = field(default_factory=list)
    _index: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._index = {name: i for i, name in enumerate(self.names)}

    def number(self, version: str, role: str) -> int:
        """The number of a pair, a new one if it was not seen."""
        key = (version, role)
        if key not in self._index:
            self._index[key] = len(self.names)
            self.names.append(key)
        return self._index[key]

    def numbers(self, frame: pl.DataFrame) -> npt.NDArray[np.int32]:
        """The number of every row's pair."""
        versions, version_of = factorized(frame["version"])
        roles, role_of = factorized(frame["role"])
        pair_of = version_of.astype(np.int64) * len(roles) + role_of
        if len(versions) * len(roles) > len(pair_of):  # names like ids: a counter of each pair would be all memory
            pairs, pair_of = np.unique(pair_of, return_inverse=True)
        else:
            pairs = np.arange(len(versions) * len(roles))
        number = np.zeros(len(pairs), np.int32)
        for at in np.flatnonzero(np.bincount(pair_of, minlength=len(pairs))).tolist():
            pair = int(pairs[at])
            number[at] = self.number(versions[pair // len(roles)], roles[pair % len(roles)])
        return cast(npt.NDArray[np.int32], number[pair_of])


@dataclass(frozen=True)
class ModelPlan:
    """A model's contract, cells and failure rules, made ready for batches."""

    contract: Contract
    profile: Profile
    rules: Mapping[str, str]
    window_us: int
    audit_share: float

    def __post_init__(self) -> None:
        assert DAY_US % self.window_us == 0, "a window divides a day"
        for name in self.contract.feature_names:
            if name not in self.profile.index:
                raise ConfigError(
                    f"The profile of '{self.model}' has no cells for '{name}'.",
                    action="Make it again: 'flywheel init'.",
                )
        self.failures(self.example())

    @property
    def model(self) -> str:
        """The model's name."""
        return self.contract.model

    @cached_property
    def kind(self) -> Literal["binary", "multiclass", "regression"]:
        """The target's kind."""
        return cast(Literal["binary", "multiclass", "regression"], self.contract.target.kind)

    @cached_property
    def unit(self) -> float:
        """What the values of a regression are counted in."""
        return self.contract.target.unit

    @cached_property
    def labels(self) -> dict[str, int]:
        """Place of every label of the contract."""
        return {label: i for i, label in enumerate(self.contract.target.labels)}

    @cached_property
    def positive(self) -> int:
        """Place of a binary target's positive label, else -1."""
        return self.labels.get(self.contract.target.positive or "", -1)

    @cached_property
    def undecided(self) -> int:
        """Place of the label of a row whose truth is due and has not come; NO_LABEL if it has none."""
        return self.labels.get(self.contract.target.undecided or "", NO_LABEL)

    @cached_property
    def timeout_us(self) -> int | None:
        """How long after it is due a truth counts as never coming."""
        seconds = self.contract.target.truth_timeout_s
        return None if seconds is None else seconds * SECOND_US

    @cached_property
    def slice_fields(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Fields with declared slices, and their values."""
        found = tuple(
            (f.name, tuple(dict.fromkeys(f.slices))[:SLICE_VALUES_MAX]) for f in self.contract.fields if f.slices
        )
        return found

    @cached_property
    def slice_types(self) -> tuple[pl.Enum, ...]:
        """For every slice field, the type whose codes are the declared values."""
        return tuple(pl.Enum(values) for _, values in self.slice_fields)

    @cached_property
    def domains(self) -> dict[str, pl.Enum]:
        """For every field with a domain, the type that only its values fit."""
        return {f.name: pl.Enum(list(dict.fromkeys(f.domain))) for f in self.contract.fields if f.domain is not None}

    @cached_property
    def label_type(self) -> pl.Enum:
        """The type whose codes are the places of the labels."""
        return pl.Enum(list(self.labels)[:OTHER_LABEL])

    @cached_property
    def slice_names(self) -> tuple[tuple[str, ...], ...]:
        """For every slice field, the slice names by code - 1."""
        return tuple(tuple(f"{name}={value}" for value in values) for name, values in self.slice_fields)

    @cached_property
    def feature_index(self) -> npt.NDArray[np.int64]:
        """Place in the profile of every contract field."""
        return np.array([self.profile.index[name] for name in self.contract.feature_names], np.int64)

    @cached_property
    def score_feature(self) -> tuple[int, FeatureProfile] | None:
        """Place and cells of the score, if the profile has it."""
        place = self.profile.index.get(SCORE_FEATURE)
        return None if place is None else (place, self.profile.features[place])

    @cached_property
    def label_feature(self) -> tuple[int, FeatureProfile] | None:
        """Place and cells of the predicted label, if the profile has it."""
        place = self.profile.index.get(LABEL_FEATURE)
        return None if place is None else (place, self.profile.features[place])

    @cached_property
    def paired(self) -> tuple[tuple[Field, int, int], ...]:
        """Fields of which feedback says what they really were, their places in the profile and among the facts."""
        facts = {name: i for i, name in enumerate(self.contract.facts)}
        return tuple((f, self.profile.index[f.name], facts[f.fact]) for f in self.contract.fields if f.fact is not None)

    @cached_property
    def input_type(self) -> np.dtype[Any]:
        """Row of a pending input."""
        n = len(self.contract.fields)
        served = [("served", np.float64, (len(self.paired),))] if self.paired else []
        return row_type(
            ("cells", np.uint8, (n,)),
            ("slices", np.uint8, (max(1, len(self.slice_fields)),)),
            ("outside", np.uint8, ((n + 7) // 8,)),
            *served,
        )

    @cached_property
    def prediction_type(self) -> np.dtype[Any]:
        """Row of a pending prediction."""
        return row_type(
            ("due_us", np.int64),
            ("score", np.float64),
            ("version", np.int32),
            ("label", np.uint8),
            ("score_cell", np.uint8),
            ("label_cell", np.uint8),
        )

    @cached_property
    def feedback_type(self) -> np.dtype[Any]:
        """Row of one feedback."""
        return row_type(
            ("f1", np.uint64),
            ("value", np.float64),
            ("kind", np.uint8),
            ("label", np.uint8),
            ("undecided", np.uint8),
            ("facts", np.float64, (max(1, len(self.contract.facts)),)),
        )

    def inputs(self, frame: pl.DataFrame) -> Rows:
        """Rows of input events whose features stand in columns; the places in the order are the caller's."""
        rows = np.zeros(frame.height, self.input_type)
        _common(rows, frame)
        columns = {column.name: column for column in frame.get_columns()}
        cells = np.full((len(self.contract.fields), frame.height), CELL_NULL, np.uint8)
        outside: dict[int, npt.NDArray[np.bool_]] = {}
        for i, f in enumerate(self.contract.fields):
            column = columns.get(f.name)
            if column is None:  # written with an older contract
                continue
            cells[i] = self.profile.feature(f.name).codes(column)
            out = self._outside(f, column, cells[i], rows["event_us"])
            if out is not None and out.any():
                outside[i] = out
        rows["cells"] = cells.T
        if outside:
            bits = np.zeros((frame.height, len(self.contract.fields)), bool)
            for i, out in outside.items():
                bits[:, i] = out
            rows["outside"] = np.packbits(bits, axis=1)
        for i, (f, _, _) in enumerate(self.paired):
            column = columns.get(f.name)
            rows["served"][:, i] = np.nan if column is None else filled(column.cast(pl.Float64), np.nan)
        for i, (name, _) in enumerate(self.slice_fields):
            if name in columns:
                rows["slices"][:, i] = physical(columns[name].cast(self.slice_types[i], strict=False), -1) + 1
        return rows

    def _outside(
        self, f: Field, column: pl.Series, cells: npt.NDArray[np.uint8], event_us: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_] | None:
        """Which values the contract does not allow; None: all are allowed."""
        out = None if f.min is None and f.max is None else out_of_range(column, f.min, f.max)
        if f.max_age_s is not None:
            old = event_us / SECOND_US - filled(column.cast(pl.Float64), np.nan) > f.max_age_s
            out = old if out is None else out | old
        if f.domain is not None and not (f.name in self._covered and not (cells == CELL_NEW).any()):
            strange = out_of_domain(column, self.domains[f.name])
            out = strange if out is None else out | strange
        return out

    @cached_property
    def _covered(self) -> frozenset[str]:
        """Categories of which everything that training saw is in the domain: only a new value can be outside."""
        found = set()
        for f in self.contract.fields:
            cells = self.profile.feature(f.name)
            if f.domain is not None and f.kind == "category" and {*cells.names, *cells.others} <= set(f.domain):
                found.add(f.name)
        return frozenset(found)

    def predictions(self, frame: pl.DataFrame, versions: Versions) -> Rows:
        """Rows of prediction events."""
        rows = np.zeros(frame.height, self.prediction_type)
        _common(rows, frame)
        rows["due_us"] = filled(frame["truth_due"], 0)
        rows["score"] = filled(frame["score"], np.nan)
        rows["version"] = versions.numbers(frame)
        rows["label"] = self._label_codes(frame["label"])
        if self.score_feature is not None:
            rows["score_cell"] = self.score_feature[1].codes(frame["score"])
        if self.label_feature is not None:
            rows["label_cell"] = self.label_feature[1].codes(frame["label"])
        return rows

    def feedback(self, frame: pl.DataFrame) -> Rows:
        """Rows of feedback events; facts stand in columns ``fact_NAME``."""
        rows = np.zeros(frame.height, self.feedback_type)
        _common(rows, frame)
        rows["f1"] = frame["feedback_id"].hash(HASH_SEEDS[0]).to_numpy()
        is_user = (frame["kind"] == "user").to_numpy()
        rows["kind"] = np.where(is_user, KIND_USER, KIND_TRUTH)
        rows["label"] = self._label_codes(frame["label"])
        if is_user.any():
            word = frame["label"].filter(pl.Series(is_user))
            codes = {word: code for code, word in enumerate(USER_WORDS)}
            rows["label"][is_user] = word.replace_strict(codes, default=USER_WRONG, return_dtype=pl.UInt8).to_numpy()
        rows["value"] = filled(frame["value"], np.nan)
        for i, name in enumerate(self.contract.facts):
            rows["facts"][:, i] = filled(frame[f"fact_{name}"], np.nan)
        return rows

    def _label_codes(self, column: pl.Series) -> npt.NDArray[np.uint8]:
        if not self.labels or column.null_count() == len(column):
            return np.full(len(column), NO_LABEL, np.uint8)
        codes = physical(column.cast(self.label_type, strict=False), OTHER_LABEL).astype(np.uint8)
        if column.null_count():
            codes[column.is_null().to_numpy()] = NO_LABEL
        return codes

    @cached_property
    def _word_of(self) -> pl.Series:
        labels = list(self.contract.target.labels)[:OTHER_LABEL]
        return pl.Series([*labels, *["?"] * (NO_LABEL - len(labels)), None], dtype=pl.String)

    def words(self, codes: npt.NDArray[np.uint8]) -> pl.Series:
        """The labels of codes; ``?`` for a label that the contract does not name."""
        return self._word_of[codes]

    def user_words(self, codes: npt.NDArray[np.uint8]) -> pl.Series:
        """What users said."""
        return USER_SERIES[codes]

    def truth_of(self, label: npt.NDArray[np.uint8], answer: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """y of a row: positive (binary), or answered right (multiclass)."""
        hit = label == self.positive if self.kind == "binary" else label == answer
        return cast(npt.NDArray[np.float64], hit.astype(np.float64))

    def example(self) -> pl.DataFrame:
        """No rows, with the columns that failure rules may use."""
        columns: dict[str, Any] = {"score": pl.Float64, "value": pl.Float64}
        columns |= dict.fromkeys(("label", "truth", "user"), pl.String)
        return pl.DataFrame(schema=columns | {name: pl.Float64 for name in self.contract.facts})

    def failures(self, rows: pl.DataFrame) -> dict[str, npt.NDArray[np.bool_]]:
        """Which rows each rule picks.

        Raises
        ------
        FailureRuleError
            If a rule is not SQL, names a column that there is not, or does not answer yes or no.
        """
        picked: dict[str, npt.NDArray[np.bool_]] = {}
        for rule in self.rules:
            try:
                answer = rows.with_columns(self._rule(rule).alias("@picked"))["@picked"]
            except pl.exceptions.PolarsError as error:
                reason = str(error).splitlines()[0]
                columns = ", ".join(rows.columns)
                raise FailureRuleError(
                    f"The failure rule '{rule}' of '{self.model}' cannot be used: {reason}",
                    action=f"It is an SQL expression over {columns}.",
                ) from error
            if answer.dtype != pl.Boolean:
                raise FailureRuleError(f"The failure rule '{rule}' of '{self.model}' does not answer yes or no.")
            picked[rule] = filled(answer, False)
        return picked

    def _rule(self, rule: str) -> pl.Expr:
        if rule not in self._rules:
            self._rules[rule] = pl.sql_expr(_quoted(self.rules[rule]))
        return self._rules[rule]

    @cached_property
    def _rules(self) -> dict[str, pl.Expr]:
        return {}

    def slice_name(self, field_number: int, code: int) -> str:
        """Name of a slice; field number -1 is all rows."""
        return ALL_SLICE if field_number < 0 else self.slice_names[field_number][code - 1]


def _quoted(rule: str) -> str:
    """The rule with its column ``user`` in quotes: bare, it is a function of SQL.

    >>> print(_quoted("user = 'no user' and not USER is null"))
    "user" = 'no user' and not "user" is null
    """
    pieces = re.split(r"('[^']*'|\"[^\"]*\")", rule)
    return "".join(p if i % 2 else re.sub(r"\buser\b", '"user"', p, flags=re.I) for i, p in enumerate(pieces))


def _common(rows: Rows, frame: pl.DataFrame) -> None:
    rows["h1"], rows["h2"] = hashes(frame["prediction_id"])
    rows["event_us"] = frame["event_time"].to_numpy()
