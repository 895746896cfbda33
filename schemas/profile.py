"""Cells of a model's features, and the reference profile that serving is held against.

A feature's values fall into at most 127 **cells**; every row lands in exactly one. Serving is summed up as integer
counts of cells, which add, subtract and do not depend on order (:mod:`schemas.parts` has a summary's counters). The
profile holds the cells, learnt from the training rows once, and how often each was seen there.

Cells of a number: null, NaN, -inf, +inf, then one between each two edges. Edges are order statistics of the training
rows, so that the law of a new sample's counts is exactly Dirichlet-multinomial for every continuous distribution
(Wilks; the "equivalent blocks" of order statistics). Cells of a category: null, OTHER (seen in training, not in the top
64), NEW (never seen), then the top 64 names.

Pure: imports nothing of ours, keeps no state.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

CELLS_MAX = 127
"""A code is one uint8, and 128 codes are set aside for each feature of a summary."""
QUANTILES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
"""Finer in the tails than equal shares: .946 of the information about a change of scale survives; ten deciles: .646."""
ATOM_SHARE = 0.02
DISTINCT_MAX = 40
TOP_NAMES = 64
OTHER_NAMES_MAX = 20_000
"""Names kept to tell OTHER from NEW; rarer ones of a larger vocabulary count as NEW."""
IMPOSSIBLE = 1e-9

CELL_NULL = 0
CELL_NAN, CELL_NEG_INF, CELL_POS_INF = 1, 2, 3
CELL_OTHER, CELL_NEW = 1, 2
NUMBER_SPECIALS = 4
CATEGORY_SPECIALS = 3

SCORE_FEATURE = "@score"
LABEL_FEATURE = "@label"

Kind = Literal["number", "category", "boolean"]
Codes = npt.NDArray[np.uint8]


class FieldLike(Protocol):
    """What a profile needs to know of a contract's field."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...


@dataclass(frozen=True)
class FieldSpec:
    """A field named by hand, where there is no contract."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class FeatureProfile:
    """The cells of one feature and what training put in them.

    Attributes
    ----------
    name
        The field's name; ``@score`` and ``@label`` are the model's own answers.
    kind
        ``number``, ``category`` or ``boolean`` (two names, ``false`` and ``true``).
    edges
        Increasing; cell ``4 + i`` of a number holds the values with exactly ``i`` edges at or below them.
    names, others
        The categories with a cell of their own, and the other ones seen in training.
    counts
        Training rows in each cell, ``r_k``.
    weights
        Dirichlet weights ``a_k``: spacings where the training values have no ties, ``r_k + 1/2`` otherwise.
    longest_run
        The longest run of training rows, in table order, whose value did not change.
    modal_share
        Share of the training rows that hold the most frequent single value.
    """

    name: str
    kind: Kind
    edges: tuple[float, ...]
    names: tuple[str, ...]
    others: tuple[str, ...]
    counts: tuple[int, ...]
    weights: tuple[float, ...]
    longest_run: int
    modal_share: float

    @property
    def is_number(self) -> bool:
        """Whether the cells are ordered."""
        return self.kind == "number"

    @property
    def atoms(self) -> tuple[float, ...]:
        """Values of a number that are frequent enough for a cell of their own."""
        return tuple(low for low, high in pairwise(self.edges) if math.nextafter(low, math.inf) == high)

    @property
    def specials(self) -> int:
        """How many cells come before the ordinary ones."""
        return NUMBER_SPECIALS if self.is_number else CATEGORY_SPECIALS

    @property
    def cell_count(self) -> int:
        """K: cells of this feature."""
        return len(self.counts)

    @property
    def rows(self) -> int:
        """Training rows that its cells were learnt from."""
        return sum(self.counts)

    @property
    def new_share(self) -> float:
        """Share of rows that may hold a category without a cell to be known by: Good and Turing's missing mass."""
        return 0.0 if self.is_number else self.weights[CELL_NEW] / max(1, self.rows)

    @property
    def minimum(self) -> float | None:
        """Smallest finite training value."""
        return self.edges[0] if self.edges else None

    @cached_property
    def shares(self) -> npt.NDArray[np.float64]:
        """p_k = a_k / sum a."""
        a = np.asarray(self.weights)
        return np.asarray(a / a.sum())

    @cached_property
    def _edge_values(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.edges, dtype=np.float64)

    @cached_property
    def _enum(self) -> pl.Enum:
        return pl.Enum([*self.names, *self.others])

    @cached_property
    def _enum_cells(self) -> Codes:
        cells = np.full(len(self.names) + len(self.others) + 1, CELL_OTHER, dtype=np.uint8)
        cells[: len(self.names)] = np.arange(CATEGORY_SPECIALS, CATEGORY_SPECIALS + len(self.names), dtype=np.uint8)
        cells[-1] = CELL_NEW
        return cells

    def codes(self, values: pl.Series) -> Codes:
        """The cell of every row, as uint8.

        >>> field = build_feature(FieldSpec("carrier", "category"), pl.Series(["EV", "UA", "EV"]))
        >>> [field.cell_label(k) for k in field.codes(pl.Series(["EV", None, "", "UA"]))]
        ['EV', 'null', 'NEW', 'UA']
        """
        return self._number_codes(values) if self.is_number else self._category_codes(values)

    def _number_codes(self, values: pl.Series) -> Codes:
        column = values.cast(pl.Float64)
        x = column.fill_null(0.0).to_numpy() if column.null_count() else column.to_numpy()
        cells = np.full(len(x), NUMBER_SPECIALS, dtype=np.uint8)
        for edge in self.edges:  # 20 passes of comparisons into bytes: ten times faster than searchsorted (plane notes)
            cells += (x >= edge).view(np.uint8)
        strange = ~np.isfinite(x)
        if strange.any():
            cells[np.isnan(x)] = CELL_NAN
            cells[x == -np.inf] = CELL_NEG_INF
            cells[x == np.inf] = CELL_POS_INF
        if column.null_count():
            cells[column.is_null().to_numpy()] = CELL_NULL
        return cells

    def _category_codes(self, values: pl.Series) -> Codes:
        text = _as_text(values)
        found = text.cast(self._enum, strict=False).to_physical()
        cells: Codes = self._enum_cells.take(found.fill_null(len(self._enum_cells) - 1).to_numpy())
        if text.null_count():
            cells[text.is_null().to_numpy()] = CELL_NULL
        return cells

    def cell_label(self, cell: int) -> str:
        """The cell in words, for people."""
        cell = int(cell)
        if cell < self.specials:
            special = ("null", "NaN", "-inf", "+inf") if self.is_number else ("null", "OTHER", "NEW")
            return special[cell]
        if not self.is_number:
            return self.names[cell - CATEGORY_SPECIALS]
        i = cell - NUMBER_SPECIALS
        if not self.edges:
            return "any"
        if i == 0:
            return f"< {self.edges[0]:g}"
        if i == len(self.edges):
            return f">= {self.edges[-1]:g}"
        low, high = self.edges[i - 1], self.edges[i]
        return f"= {low:g}" if high == math.nextafter(low, math.inf) else f"[{low:g}, {high:g})"


@dataclass(frozen=True)
class Profile:
    """The reference profile of one model version.

    Attributes
    ----------
    model
        The model's name.
    fingerprint
        Of the contract that the training rows obeyed.
    m
        Training rows.
    features
        In the contract's order, then the model's own answers; the position is the feature's index in a summary's codes.
    labels
        The target's labels in the order of the confusion matrix (empty for a regression).
    """

    model: str
    fingerprint: str
    m: int
    features: tuple[FeatureProfile, ...]
    labels: tuple[str, ...] = ()

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Position of a feature by name."""
        return {feature.name: i for i, feature in enumerate(self.features)}

    def feature(self, name: str) -> FeatureProfile:
        """The feature of that name."""
        return self.features[self.index[name]]

    def codes(self, table: pl.DataFrame, features: Iterable[str] | None = None) -> list[Codes]:
        """One uint8 array of cells a feature, in the profile's order."""
        return [self.feature(name).codes(table[name]) for name in (features or self.index)]

    def to_json(self) -> str:
        """Canonical JSON: equal profiles give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Read what :meth:`to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        items: list[dict[str, Any]] = data.pop("features")
        features = tuple(FeatureProfile(**{key: _frozen(value) for key, value in item.items()}) for item in items)
        return cls(features=features, labels=tuple(data.pop("labels")), **data)

    @cached_property
    def profile_id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def build_feature(field: FieldLike, values: pl.Series) -> FeatureProfile:
    """Learn one feature's cells from its training values."""
    return _build_number(field, values) if field.kind == "number" else _build_category(field, values)


def build_profile(
    table: pl.DataFrame,
    fields: Sequence[FieldLike],
    *,
    model: str,
    fingerprint: str = "",
    score: pl.Series | None = None,
    label: pl.Series | None = None,
    labels: Sequence[str] = (),
) -> Profile:
    """Learn the cells of every field from the training rows.

    Parameters
    ----------
    table
        One column a field, one row a training row, best in time order (``longest_run`` reads it so).
    fields
        The contract's fields.
    model, fingerprint
        Name of the model, fingerprint of its contract.
    score, label
        The model's answers on rows like the ones it will serve (out of fold, where that can be had): they become the
        features ``@score`` and ``@label``.
    labels
        The target's labels in the contract's order.
    """
    features = [build_feature(field, table[field.name]) for field in fields]
    if score is not None:
        features.append(build_feature(FieldSpec(SCORE_FEATURE, "number"), score))
    if label is not None:
        features.append(build_feature(FieldSpec(LABEL_FEATURE, "category"), label))
    return Profile(model, fingerprint, table.height, tuple(features), tuple(labels))


def fitted(profile: Profile | None, fields: Sequence[FieldLike], *, model: str, fingerprint: str = "") -> Profile:
    """The profile with cells for every field of a contract, whatever it was made for.

    A field that the profile does not have, or has of another kind, gets cells that no row was counted in; the other
    fields keep their place. A profile that fits is returned as it is.
    """
    if profile is None:
        profile = Profile(model, fingerprint, 0, ())
    wanted = {field.name: field for field in fields}
    features = [
        feature if feature.name not in wanted or feature.kind == wanted[feature.name].kind
        else _empty(wanted[feature.name])
        for feature in profile.features
    ]  # fmt: skip
    features += [_empty(field) for field in fields if field.name not in profile.index]
    return profile if tuple(features) == profile.features else replace(profile, features=tuple(features))


def _empty(field: FieldLike) -> FeatureProfile:
    kinds = {"number": pl.Float64, "category": pl.String, "boolean": pl.Boolean}
    return build_feature(field, pl.Series(field.name, [], dtype=kinds[field.kind]))


def _build_number(field: FieldLike, values: pl.Series) -> FeatureProfile:
    column = values.cast(pl.Float64)
    known = column.drop_nulls().drop_nans()
    x = np.sort(known.filter(known.is_finite()).to_numpy()) + 0.0  # -0.0 is 0.0
    distinct, times = np.unique(x, return_counts=True)
    edges = _edges(x, distinct, times)
    empty = FeatureProfile(field.name, "number", edges, (), (), (), (), 0, 0.0)
    counts = np.bincount(empty.codes(values), minlength=NUMBER_SPECIALS + len(edges) + 1)
    weights = counts + 0.5
    if len(x) and len(distinct) == len(x):  # no ties: spacings, exact for every continuous law
        weights[NUMBER_SPECIALS:] = np.maximum(counts[NUMBER_SPECIALS:], [1] + [0] * len(edges))
    modal = float(times.max() / max(1, len(values))) if len(times) else 0.0
    return _feature(field, counts, weights, modal, values, edges=edges)


def _edges(x: npt.NDArray[np.float64], distinct: npt.NDArray[np.float64], times: npt.NDArray[Any]) -> tuple[float, ...]:
    if not len(x):
        return ()
    above = math.nextafter(float(distinct[-1]), math.inf)
    if len(distinct) <= DISTINCT_MAX:
        # Without ties the largest value begins the last spacing, which has no end.
        has_end = len(distinct) < len(x) and math.isfinite(above)
        return tuple(float(v) for v in distinct) + ((above,) if has_end else ())
    ranks = [max(1, math.ceil(q * len(x))) for q in QUANTILES]
    chosen = {float(x[rank - 1]) for rank in ranks} | {float(x[0]), float(x[-1])}
    for atom in distinct[times >= ATOM_SHARE * len(x)]:
        chosen |= {float(atom), math.nextafter(float(atom), math.inf)}
    return tuple(sorted(chosen))[: CELLS_MAX - NUMBER_SPECIALS - 1]


def _build_category(field: FieldLike, values: pl.Series) -> FeatureProfile:
    text = _as_text(values)
    seen = text.drop_nulls().value_counts(name="n").rename({text.name: "value"})
    seen = seen.sort(["n", "value"], descending=[True, False])
    names = [str(v) for v in seen["value"]]
    if field.kind == "boolean":
        names = ["false", "true"]
    top, others = tuple(names[:TOP_NAMES]), tuple(names[TOP_NAMES : TOP_NAMES + OTHER_NAMES_MAX])
    empty = FeatureProfile(field.name, field.kind, (), top, others, (), (), 0, 0.0)
    counts = np.bincount(empty.codes(values), minlength=CATEGORY_SPECIALS + len(top))
    weights = counts + 0.5
    # Good and Turing's missing mass, and of a vocabulary too large to be kept what came again beyond its end.
    beyond = seen["n"][TOP_NAMES + OTHER_NAMES_MAX :]
    weights[CELL_NEW] = max(1, int((seen["n"] == 1).sum()) + int(beyond.filter(beyond > 1).sum()))
    if not others:
        weights[CELL_OTHER] = IMPOSSIBLE
    modal = float(counts[CATEGORY_SPECIALS:].max(initial=0) / max(1, len(values)))
    return _feature(field, counts, weights, modal, values, names=top, others=others)


def _feature(
    field: FieldLike,
    counts: npt.NDArray[Any],
    weights: npt.NDArray[Any],
    modal_share: float,
    values: pl.Series,
    *,
    edges: tuple[float, ...] = (),
    names: tuple[str, ...] = (),
    others: tuple[str, ...] = (),
) -> FeatureProfile:
    assert len(counts) <= CELLS_MAX, f"{field.name} has {len(counts)} cells"
    run = int(values.drop_nulls().rle().struct.field("len").max() or 0) if len(values) else 0  # type: ignore[arg-type]
    r, a = tuple(int(c) for c in counts), tuple(float(w) for w in weights)
    return FeatureProfile(field.name, field.kind, edges, names, others, r, a, run, modal_share)


def _as_text(values: pl.Series) -> pl.Series:
    return values if values.dtype == pl.String else values.cast(pl.String)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
