"""From joined rows to the integer counters of parts, grouped by source segment, slice and window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from schemas import parts
from schemas.parts import ALL_SLICE, Axis, CodeArray, Ints
from streams.plane.join import Pairs, Truths, topic_of
from streams.plane.pick import audited
from streams.plane.plan import (
    KIND_TRUTH,
    KIND_USER,
    NO_LABEL,
    ORDER_TOPICS,
    USER_EDITED,
    USER_RIGHT,
    USER_WRONG,
    ModelPlan,
)
from streams.plane.store import Rows

if TYPE_CHECKING:
    from streams.plane.reached import Reached
    from streams.plane.segments import Cuts

DENSE_MAX = 8_000_000
"""Largest table of counters made at once (64 MB); rows in more groups are counted in several goes."""
KEYS_MIN = 4096
"""Keys in a range up to this, or up to the number of rows, are ranked by counting instead of sorting."""
EXACT_MAX = 2**52
"""Sums below this are exact in the floats that bincount adds up."""

Counter = tuple[CodeArray | int, Ints | int]
"""A code for all rows or one a row, and likewise what each row adds."""


@dataclass(frozen=True)
class Addition:
    """Counters that one source segment (its place in the step's :class:`Cuts`) adds to one part."""

    place: int
    version: int
    slice: str
    axis: Axis
    window_us: int
    codes: CodeArray
    counts: Ints


@dataclass(frozen=True)
class _Groups:
    """Rows by (source segment, version, window)."""

    number: Ints
    place: Ints
    version: Ints
    window_us: Ints

    def __len__(self) -> int:
        return len(self.place)


@dataclass(frozen=True)
class _Cells:
    """For every row, where the cells of its features stand among ``codes``."""

    places: npt.NDArray[np.int64]
    codes: CodeArray

    @classmethod
    def of(cls, plan: ModelPlan, inputs: Rows, predictions: Rows) -> _Cells:
        """Cells of the features, and of the model's own answers where the profile has them."""
        answers = [
            (feature[0], predictions[name])
            for feature, name in ((plan.score_feature, "score_cell"), (plan.label_feature, "label_cell"))
            if feature is not None
        ]
        features = [*plan.feature_index.tolist(), *(place for place, _ in answers)]
        widths = [plan.profile.features[place].cell_count for place in features]
        places = np.empty((len(inputs), len(features)), np.int64)
        places[:, : len(plan.feature_index)] = inputs["cells"]
        for i, (_, cells) in enumerate(answers, len(plan.feature_index)):
            places[:, i] = cells
        places += np.cumsum([0, *widths[:-1]])
        codes = [
            parts.CELLS + parts.CELLS_SIDE * place + np.arange(width)
            for place, width in zip(features, widths, strict=True)
        ]
        return cls(places, np.concatenate(codes).astype(np.int32))


def _groups(plan: ModelPlan, order: Ints, offset: Ints, predictions: Rows, time_us: Ints, cuts: Cuts) -> _Groups:
    columns = (cuts.places(topic_of(order), offset), predictions["version"], time_us // plan.window_us)
    number, count = np.zeros(len(order), np.int64), 1
    for column in columns:
        low = int(column.min())
        width = int(column.max()) - low + 1
        rank = column - low
        if count * width > len(order) + KEYS_MIN:  # far apart
            distinct, rank = np.unique(column, return_inverse=True)
            width = len(distinct)
        number, count = _ranked(number * width + rank, count * width)
    heads = np.empty(count, np.int64)
    heads[number] = np.arange(len(number))
    place, version, window = (column[heads] for column in columns)
    return _Groups(number, place, version, window * plan.window_us)


def _ranked(keys: Ints, size: int) -> tuple[Ints, int]:
    """The ranks of keys below ``size`` among those that occur, and how many occur."""
    if size > len(keys) + KEYS_MIN:
        distinct, rank = np.unique(keys, return_inverse=True)
        return rank, len(distinct)
    rank = np.cumsum(np.bincount(keys, minlength=size) > 0) - 1
    return rank[keys], int(rank[-1]) + 1


def count_pairs(plan: ModelPlan, pairs: Pairs, cuts: Cuts, reached: Reached) -> list[Addition]:
    """What pairs add: their rows, by themselves those of an hour that was over when they met, and on the due axis the
    undecided ones, where they are due, or in the hour that is open when they meet if that is later."""
    if not len(pairs):
        return []
    event_us = pairs.predictions["event_us"]
    is_late = reached.not_before(event_us, pairs.order // ORDER_TOPICS) > event_us
    if is_late.any():
        found = _count_rows(plan, pairs.take(np.flatnonzero(is_late)), cuts, "late")
        found += _count_rows(plan, pairs.take(np.flatnonzero(~is_late)), cuts, "event")
    else:
        found = _count_rows(plan, pairs, cuts, "event")
    if plan.undecided != NO_LABEL:
        found += _count_undecided(plan, pairs, cuts, reached)
    return found


def _count_undecided(plan: ModelPlan, pairs: Pairs, cuts: Cuts, reached: Reached) -> list[Addition]:
    due = np.flatnonzero((pairs.predictions["due_us"] > 0) & np.isfinite(pairs.predictions["score"]))
    if not len(due):
        return []
    some = pairs.take(due)
    score, answer = some.predictions["score"], some.predictions["label"]
    counters = parts.due_counters(score, plan.truth_of(np.full(len(due), plan.undecided, np.uint8), answer), plan.kind)
    due_us = reached.not_before(some.predictions["due_us"], some.order // ORDER_TOPICS)
    at = _groups(plan, some.order, some.offset, some.predictions, due_us, cuts)
    return list(_by_slice(plan, at, some.inputs, [(parts.N, 1), *counters], "due"))


def _count_rows(plan: ModelPlan, pairs: Pairs, cuts: Cuts, axis: Axis) -> list[Addition]:
    """Rows, scores, cells, values outside the contract, by event time."""
    if not len(pairs):
        return []
    inputs, predictions = pairs.inputs, pairs.predictions
    score = predictions["score"]
    scored = np.isfinite(score)
    constants: list[Counter] = [
        (parts.N, 1),
        (parts.N_INPUT, 1),
        (parts.N_SCORED, scored.astype(np.int64)),
        (parts.SUM_SCORE, np.where(scored, parts.micro(score / plan.unit), 0)),
    ]
    if plan.kind != "regression":
        amount = 1 if scored.all() else scored.astype(np.int64)
        constants.append((parts.score_bin(score).astype(np.int32) + np.int32(parts.SCORED), amount))
    if plan.audit_share > 0:
        constants.append((parts.AUDIT_SHARE, round(plan.audit_share * parts.MICRO)))
    if inputs["outside"].any():
        outside = np.unpackbits(inputs["outside"], axis=1)[:, : len(plan.contract.fields)]
        for i in np.flatnonzero(outside.any(axis=0)):
            constants.append((parts.OUTSIDE + int(plan.feature_index[i]), outside[:, i].astype(np.int64)))
    cells = _Cells.of(plan, inputs, predictions)
    groups = _groups(plan, pairs.order, pairs.offset, predictions, predictions["event_us"], cuts)
    return list(_by_slice(plan, groups, inputs, constants, axis, cells))


def count_truths(plan: ModelPlan, truths: Truths, cuts: Cuts, partition: int, reached: Reached) -> list[Addition]:
    """What outcomes add, or take back: losses, calibration, confusion, bias; users' words."""
    found: list[Addition] = []
    score, rows, sign = truths.predictions["score"], truths.rows, truths.sign
    if plan.kind == "regression":
        usable, y_all = np.isfinite(rows["value"]), rows["value"]
    else:
        usable, y_all = rows["label"] != NO_LABEL, plan.truth_of(rows["label"], truths.predictions["label"])
    known = np.flatnonzero((rows["kind"] == KIND_TRUTH) & usable & np.isfinite(score))
    if len(known):
        some, y, s = truths.predictions.take(known), y_all[known], sign[known]
        label, answer = rows["label"][known], some["label"]
        right, undecided = label == answer, rows["undecided"][known]
        counters = _signed(parts.truth_counters(some["score"], y, plan.kind, plan.unit, right), s)
        counters.append((parts.N_UNDECIDED, undecided * s))
        counters.append((parts.N_CORRECTED, truths.is_correction[known] * s))
        if plan.kind != "regression":
            counters.append((parts.N_CORRECT, right * s))
            place = np.minimum(answer, parts.CONFUSION_OTHER).astype(np.int32) * parts.CONFUSION_SIDE
            counters.append((place + np.minimum(label, parts.CONFUSION_OTHER) + np.int32(parts.CONFUSION), s))
        came = s * (undecided == 0) if undecided.any() or (s < 0).any() else 1
        outcome = np.zeros(len(y)) if plan.kind == "regression" else y
        counters.append((parts.delay_code(rows["event_us"][known] - some["event_us"], outcome), came))
        order, offset, asked = truths.order[known], truths.offset[known], truths.inputs.take(known)
        groups = _groups(plan, order, offset, some, some["event_us"], cuts)
        found += _by_slice(plan, groups, asked, counters, "event")
        found += _due(plan, truths, known, y, cuts, reached)
        found += _audit(plan, truths, known, y, cuts, partition)
    said = np.flatnonzero(rows["kind"] == KIND_USER)
    if len(said):
        some, word = truths.predictions.take(said), rows["label"][said]
        codes = {parts.USER_RIGHT: USER_RIGHT, parts.USER_WRONG: USER_WRONG, parts.USER_EDITED: USER_EDITED}
        counters = [(code, (word == said_word) * sign[said]) for code, said_word in codes.items()]
        order, offset = truths.order[said], truths.offset[said]
        asked = truths.inputs.take(said)
        told_us = reached.not_before(truths.rows["event_us"][said], order // ORDER_TOPICS)
        axes: list[tuple[Axis, Ints]] = [("event", some["event_us"]), ("due", told_us)]
        for axis, time_us in axes:
            found += _by_slice(plan, _groups(plan, order, offset, some, time_us, cuts), asked, counters, axis)
    return found + _facts(plan, truths, cuts, reached)


def _facts(plan: ModelPlan, truths: Truths, cuts: Cuts, reached: Reached) -> list[Addition]:
    """The fact axis: served values held against what the feedback says they were; both must be there."""
    if not plan.paired:
        return []
    facts, served = truths.rows["facts"], truths.inputs["served"]
    compared = np.isfinite(facts[:, [fact for _, _, fact in plan.paired]]) & ~np.isnan(served)
    compared &= (truths.rows["kind"] == KIND_TRUTH)[:, None]
    some = np.flatnonzero(compared.any(axis=1))
    if not len(some):
        return []
    counters: list[Counter] = []
    sign = truths.sign[some]
    for i, (field, feature, fact) in enumerate(plan.paired):
        is_known, true = compared[some, i], facts[some, fact]
        allowed = np.maximum(field.tolerance, field.relative_tolerance * np.abs(true))
        with np.errstate(over="ignore", invalid="ignore"):
            differs = is_known & ~(np.abs(served[some, i] - true) <= allowed)
        counters += [(parts.PAIRED + feature, is_known * sign), (parts.PAIRED_DIFFER + feature, differs * sign)]
    predictions = truths.predictions.take(some)
    time_us = reached.not_before(truths.rows["event_us"][some], truths.order[some] // ORDER_TOPICS)
    groups = _groups(plan, truths.order[some], truths.offset[some], predictions, time_us, cuts)
    return list(_by_slice(plan, groups, truths.inputs.take(some), counters, "fact"))


def _audit(
    plan: ModelPlan, truths: Truths, known: Ints, y: npt.NDArray[np.float64], cuts: Cuts, partition: int
) -> list[Addition]:
    """What the rows add that the random audit picked: the only truths whose propensity is known."""
    offset = truths.predictions["offset"][known]
    at = np.flatnonzero(audited(partition, offset, plan.audit_share))
    if not len(at):
        return []
    picked = known[at]
    some, s = truths.predictions.take(picked), truths.sign[picked]
    is_right = truths.rows["label"][picked] == some["label"]
    counters = _signed(parts.audit_counters(some["score"], y[at], is_right, plan.kind, plan.unit), s)
    groups = _groups(plan, truths.order[picked], truths.offset[picked], some, some["event_us"], cuts)
    return list(_by_slice(plan, groups, truths.inputs.take(picked), counters, "event"))


def _due(
    plan: ModelPlan, truths: Truths, known: Ints, y: npt.NDArray[np.float64], cuts: Cuts, reached: Reached
) -> list[Addition]:
    """The due axis: a row that counts as undecided from the start is put right, any other one enters with its truth.

    That is when the truth is due, or when it came if that is later, or nobody says when it is due. A row is put right
    while the hour in which its truth is due is open, or as its input and prediction meet after it: else it was judged.
    """
    some, order = truths.predictions.take(known), truths.order[known]
    if plan.undecided != NO_LABEL:
        other = plan.truth_of(np.full(len(known), plan.undecided, np.uint8), some["label"])
        due_us = reached.not_before(some["due_us"], order // ORDER_TOPICS)
        is_open = (due_us == some["due_us"]) | (order == np.maximum(truths.inputs["order"][known], some["order"]))
        moved = np.flatnonzero((some["due_us"] > 0) & (y != other) & is_open)
        change = parts.micro(y - other)[moved] * truths.sign[known][moved]
        counters: list[Counter] = [(parts.SUM_Y, change)]
        time_us = due_us[moved]
    else:
        moved = np.arange(len(known))
        counters = _signed(
            [(parts.N, 1), *parts.due_counters(some["score"], y, plan.kind, plan.unit)], truths.sign[known]
        )
        came_us = reached.not_before(truths.rows["event_us"][known], order // ORDER_TOPICS)
        time_us = np.maximum(np.where(some["due_us"] > 0, some["due_us"], some["event_us"]), came_us)
    if not len(moved):
        return []
    at = known[moved]
    groups = _groups(plan, truths.order[at], truths.offset[at], some.take(moved), time_us, cuts)
    return list(_by_slice(plan, groups, truths.inputs.take(at), counters, "due"))


def _signed(counters: list[Counter], sign: Ints) -> list[Counter]:
    if (sign == 1).all():  # the usual case: nothing is taken back
        return counters
    return [(code, amount * sign) for code, amount in counters]


def _by_slice(
    plan: ModelPlan, groups: _Groups, inputs: Rows, counters: list[Counter], axis: Axis, cells: _Cells | None = None
) -> Iterator[Addition]:
    """Tally the rows of every declared slice, and all rows: a slice field's values and "none" add up to these."""
    for number in range(max(1, len(plan.slice_fields))):
        values, keys = 1, groups.number
        if plan.slice_fields:
            values = len(plan.slice_names[number]) + 1
            keys = keys * values + inputs["slices"][:, number]
        for found, codes, table in _tallies(keys, len(groups) * values, values, counters, cells):
            group, value = np.divmod(found, values)
            own = [
                (g, plan.slice_name(number, v), row)
                for g, v, row in zip(group.tolist(), value.tolist(), table, strict=True)
                if v
            ]
            if not number:
                heads = np.flatnonzero(np.diff(group, prepend=-1))
                own += zip(
                    group[heads].tolist(), repeat(ALL_SLICE), np.add.reduceat(table, heads, axis=0), strict=False
                )
            for g, name, row in own:
                filled = np.flatnonzero(row)
                if len(filled):
                    yield Addition(
                        int(groups.place[g]), int(groups.version[g]), name, axis,
                        int(groups.window_us[g]), codes[filled], row[filled],
                    )  # fmt: skip


def _tallies(
    keys: Ints, size: int, together: int, counters: list[Counter], cells: _Cells | None
) -> Iterator[tuple[Ints, CodeArray, npt.NDArray[np.int64]]]:
    """For the keys that occur: sorted codes, and a table of sums with one row a key.

    One table, unless it would be very large; keys with the same ``key // together`` are never in two.
    """
    width = 1_000 + (len(cells.codes) if cells else 0)
    at_once = max(1, DENSE_MAX // (width * together)) * together
    for first in range(0, size, at_once):
        rows = None
        if size > at_once:
            rows = np.flatnonzero((keys >= first) & (keys < first + at_once))
            if not len(rows):
                continue
        own = keys if rows is None else keys[rows] - first
        rank, count = _ranked(own, min(size, at_once))
        found = np.empty(count, np.int64)
        found[rank] = own + first
        yield found, *_tally(rank, count, rows, counters, cells)


def _tally(
    rank: Ints, count: int, rows: Ints | None, counters: list[Counter], cells: _Cells | None
) -> tuple[CodeArray, npt.NDArray[np.int64]]:
    """Sorted codes, and the sums of each of ``count`` ranks; ``rows``: the rows that the ranks belong to."""
    sizes = np.bincount(rank, minlength=count)
    starts = np.cumsum(sizes) - sizes
    by = np.argsort(rank.astype(np.uint16) if count < 2**16 else rank, kind="stable")  # of 16 bits: a radix sort
    tables: list[tuple[CodeArray, npt.NDArray[np.int64]]] = []
    for code, amount in counters:
        weights = amount if rows is None or not isinstance(amount, np.ndarray) else amount[rows]
        if isinstance(code, np.ndarray):
            own = code if rows is None else code[rows]
            base = int(own.min())
            wide = int(own.max()) - base + 1
            sums = _bincount(rank * wide + (own - base), weights, count * wide)
            tables.append((np.arange(base, base + wide, dtype=np.int32), sums.reshape(count, wide)))
        else:
            each = np.add.reduceat(weights[by], starts) if isinstance(weights, np.ndarray) else sizes * weights
            tables.append((np.array([code], np.int32), each.reshape(count, 1)))
    if cells is not None:
        places = cells.places if rows is None else cells.places[rows]
        wide = len(cells.codes)
        sums = np.bincount((places + (rank * wide)[:, None]).ravel(), minlength=count * wide)
        tables.append((cells.codes, sums.reshape(count, wide)))
    assert all(table.dtype == np.int64 for _, table in tables), "together with unsigned ones they would become floats"
    codes = np.concatenate([c for c, _ in tables])
    order = np.argsort(codes, kind="stable")
    return codes[order], np.concatenate([t for _, t in tables], axis=1)[:, order]


def _bincount(keys: Ints, weights: Any, size: int) -> Ints:
    """Integer sums by key, exact."""
    if not isinstance(weights, np.ndarray):
        return np.bincount(keys, minlength=size) * np.int64(weights)
    if len(weights) and int(np.abs(weights).max()) * len(weights) < EXACT_MAX:
        return np.rint(np.bincount(keys, weights=weights, minlength=size)).astype(np.int64)
    sums = np.zeros(size, np.int64)
    np.add.at(sums, keys, weights)
    return cast(Ints, sums)
