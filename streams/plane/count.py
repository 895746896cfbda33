"""From joined rows to the integer counters of parts, grouped by source segment, slice and window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from schemas import parts
from schemas.parts import Axis, CodeArray, Ints
from streams.plane.join import Pairs, Truths, topic_of
from streams.plane.plan import KIND_TRUTH, KIND_USER, NO_LABEL, USER_RIGHT, ModelPlan
from streams.plane.store import Rows

DENSE_MAX = 8_000_000
"""Largest table of counters made at once (64 MB); rows in more groups are counted in several goes."""
EXACT_MAX = 2**52
"""Sums below this are exact in the floats that bincount adds up."""


@dataclass(frozen=True)
class Addition:
    """Counters that one source segment adds to one part."""

    topic: int
    segment: int
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
    topic: Ints
    segment: Ints
    version: Ints
    window_us: Ints

    def __len__(self) -> int:
        return len(self.topic)


def _groups(
    plan: ModelPlan, order: Ints, offset: Ints, predictions: Rows, time_us: Ints, segment_records: int
) -> _Groups:
    topic = topic_of(order)
    segment = offset // segment_records
    window = time_us // plan.window_us
    keys = np.stack([topic, segment, predictions["version"].astype(np.int64), window], axis=1)
    number = np.zeros(len(keys), np.int64)
    for column in range(keys.shape[1]):
        rank, inverse = np.unique(keys[:, column], return_inverse=True)
        number = np.unique(number * len(rank) + inverse, return_inverse=True)[1]
    count = int(number.max(initial=-1)) + 1
    heads = np.zeros(count, np.int64)
    heads[number] = np.arange(len(keys))
    first = keys[heads]
    return _Groups(number, first[:, 0], first[:, 1], first[:, 2], first[:, 3] * plan.window_us)


def count_pairs(plan: ModelPlan, pairs: Pairs, segment_records: int) -> list[Addition]:
    """What pairs add: rows, scores, cells, values outside the contract; on the due axis the undecided rows."""
    if not len(pairs):
        return []
    inputs, predictions = pairs.inputs, pairs.predictions
    score = predictions["score"]
    scored = np.isfinite(score)
    constants: list[tuple[CodeArray | int, Ints | int]] = [
        (parts.N, 1),
        (parts.N_INPUT, 1),
        (parts.N_SCORED, scored.astype(np.int64)),
        (parts.SUM_SCORE, np.where(scored, parts.micro(score), 0)),
    ]
    outside = np.unpackbits(inputs["outside"], axis=1)[:, : len(plan.contract.fields)]
    for i in np.flatnonzero(outside.any(axis=0)):
        constants.append((parts.OUTSIDE + int(plan.feature_index[i]), outside[:, i].astype(np.int64)))
    cells = [(int(place), inputs["cells"][:, i]) for i, place in enumerate(plan.feature_index)]
    if plan.score_feature is not None:
        cells.append((plan.score_feature[0], predictions["score_cell"]))
    if plan.label_feature is not None:
        cells.append((plan.label_feature[0], predictions["label_cell"]))
    groups = _groups(plan, pairs.order, pairs.offset, predictions, predictions["event_us"], segment_records)
    found = list(_by_slice(plan, groups, inputs, constants, "event", cells))
    if plan.undecided != NO_LABEL:
        due = np.flatnonzero((predictions["due_us"] > 0) & scored)
        if len(due):
            some, label = predictions[due], np.full(len(due), plan.undecided, np.uint8)
            counters = parts.due_counters(some["score"], plan.truth_of(label, some["label"]), plan.kind)
            at = _groups(plan, pairs.order[due], pairs.offset[due], some, some["due_us"], segment_records)
            found += _by_slice(plan, at, inputs[due], [(parts.N, 1), *counters], "due", [])
    return found


def count_truths(plan: ModelPlan, truths: Truths, segment_records: int) -> list[Addition]:
    """What outcomes add, or take back: losses, calibration, confusion, bias; users' words."""
    found: list[Addition] = []
    score, rows, sign = truths.predictions["score"], truths.rows, truths.sign
    if plan.kind == "regression":
        usable, y_all = np.isfinite(rows["value"]), rows["value"]
    else:
        usable, y_all = rows["label"] != NO_LABEL, plan.truth_of(rows["label"], truths.predictions["label"])
    known = np.flatnonzero((rows["kind"] == KIND_TRUTH) & usable & np.isfinite(score))
    if len(known):
        some, y, s = truths.predictions[known], y_all[known], sign[known]
        label, answer = rows["label"][known], some["label"]
        counters = _signed(parts.truth_counters(some["score"], y, plan.kind), s)
        counters.append((parts.N_UNDECIDED, rows["undecided"][known] * s))
        counters.append((parts.N_CORRECTED, truths.is_correction[known] * s))
        if plan.kind != "regression":
            counters.append((parts.N_CORRECT, (label == answer) * s))
            place = np.minimum(answer, parts.CONFUSION_OTHER).astype(np.int32) * parts.CONFUSION_SIDE
            counters.append((place + np.minimum(label, parts.CONFUSION_OTHER) + np.int32(parts.CONFUSION), s))
        order, offset = truths.order[known], truths.offset[known]
        groups = _groups(plan, order, offset, some, some["event_us"], segment_records)
        found += _by_slice(plan, groups, truths.inputs[known], counters, "event", [])
        found += _due(plan, truths, known, y, segment_records)
    said = np.flatnonzero(rows["kind"] == KIND_USER)
    if len(said):
        some, right = truths.predictions[said], rows["label"][said] == USER_RIGHT
        counters = [(parts.USER_RIGHT, right * sign[said]), (parts.USER_WRONG, ~right * sign[said])]
        order, offset = truths.order[said], truths.offset[said]
        groups = _groups(plan, order, offset, some, some["event_us"], segment_records)
        found += _by_slice(plan, groups, truths.inputs[said], counters, "event", [])
    return found


def _due(
    plan: ModelPlan, truths: Truths, known: Ints, y: npt.NDArray[np.float64], segment_records: int
) -> list[Addition]:
    """The due axis: a row that counts as undecided from the start is put right, any other one enters with its truth."""
    some = truths.predictions[known]
    if plan.undecided != NO_LABEL:
        other = plan.truth_of(np.full(len(known), plan.undecided, np.uint8), some["label"])
        moved = np.flatnonzero((some["due_us"] > 0) & (y != other))
        change = parts.micro(y - other)[moved] * truths.sign[known][moved]
        counters: list[tuple[CodeArray | int, Ints | int]] = [(parts.SUM_Y, change)]
    else:
        moved = np.arange(len(known))
        counters = _signed([(parts.N, 1), *parts.due_counters(some["score"], y, plan.kind)], truths.sign[known])
    if not len(moved):
        return []
    at, rows = known[moved], some[moved]
    time_us = np.where(rows["due_us"] > 0, rows["due_us"], rows["event_us"])
    groups = _groups(plan, truths.order[at], truths.offset[at], rows, time_us, segment_records)
    return list(_by_slice(plan, groups, truths.inputs[at], counters, "due", []))


def _signed(
    counters: Iterable[tuple[CodeArray | int, Ints | int]], sign: Ints
) -> list[tuple[CodeArray | int, Ints | int]]:
    return [(code, amount * sign) for code, amount in counters]


def _by_slice(
    plan: ModelPlan,
    groups: _Groups,
    inputs: Rows,
    counters: list[tuple[CodeArray | int, Ints | int]],
    axis: Axis,
    cells: list[tuple[int, npt.NDArray[np.uint8]]],
) -> Iterator[Addition]:
    """Tally all rows, then the rows of every declared slice."""
    for field_number in range(-1, len(plan.slice_fields)):
        if field_number < 0:
            kept, number, keys = None, groups.number, np.arange(len(groups))
            code = np.zeros(len(keys), np.int64)
        else:
            codes = inputs["slices"][:, field_number].astype(np.int64)
            kept = np.flatnonzero(codes)
            combined = groups.number[kept] * 256 + codes[kept]
            distinct, number = np.unique(combined, return_inverse=True)
            keys, code = distinct >> 8, distinct & 255
        if not len(keys):
            continue
        for i, part_codes, counts in _tally(number, len(keys), kept, counters, cells):
            g = int(keys[i])
            yield Addition(
                int(groups.topic[g]), int(groups.segment[g]), int(groups.version[g]),
                plan.slice_name(field_number, int(code[i])), axis, int(groups.window_us[g]), part_codes, counts,
            )  # fmt: skip


def _tally(
    number: Ints,
    size: int,
    kept: Ints | None,
    counters: list[tuple[CodeArray | int, Ints | int]],
    cells: list[tuple[int, npt.NDArray[np.uint8]]],
) -> Iterator[tuple[int, CodeArray, Ints]]:
    """Sorted codes and their sums for every group."""
    tables: list[tuple[CodeArray, npt.NDArray[np.int64]]] = []
    for code, amount in counters:
        weights = amount if kept is None or not isinstance(amount, np.ndarray) else amount[kept]
        if isinstance(code, np.ndarray):
            own = (code if kept is None else code[kept]).astype(np.int64)
            base, width = int(own.min()), int(own.max() - own.min()) + 1
            sums = _bincount(number * width + (own - base), weights, size * width)
            tables.append((np.arange(base, base + width, dtype=np.int32), sums.reshape(size, width)))
        else:
            tables.append((np.array([code], np.int32), _bincount(number, weights, size).reshape(size, 1)))
    side = parts.CELLS_SIDE
    at_once = max(1, DENSE_MAX // (size * side))
    for start in range(0, len(cells), at_once):
        some = cells[start : start + at_once]
        width = len(some) * side
        keys = np.concatenate(
            [number * width + (np.int64(i * side) + (c if kept is None else c[kept])) for i, (_, c) in enumerate(some)]
        )
        codes = np.concatenate([np.arange(side, dtype=np.int32) + (parts.CELLS + side * place) for place, _ in some])
        tables.append((codes, np.bincount(keys, minlength=size * width).reshape(size, width)))
    codes = np.concatenate([c for c, _ in tables])
    by = np.argsort(codes, kind="stable")
    table = np.concatenate([t for _, t in tables], axis=1)[:, by]
    codes = codes[by]
    for i in range(size):
        filled = np.flatnonzero(table[i])
        if len(filled):
            yield i, codes[filled], table[i][filled]


def _bincount(keys: Ints, weights: Any, size: int) -> Ints:
    """Integer sums by key, exact."""
    if not isinstance(weights, np.ndarray):
        return np.bincount(keys, minlength=size) * np.int64(weights)
    if len(weights) and int(np.abs(weights).max()) * len(weights) < EXACT_MAX:
        return np.rint(np.bincount(keys, weights=weights, minlength=size)).astype(np.int64)
    sums = np.zeros(size, np.int64)
    np.add.at(sums, keys, weights)
    return cast(Ints, sums)
