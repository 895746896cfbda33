"""The rows of the ids that a batch touches, the store's and the batch's own side by side, and what was said of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streams.plane.plan import KIND_TRUTH, KIND_USER, ORDER_TOPICS
from streams.plane.store import Rows, joined

Indexes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass
class Side:
    """All rows of one kind: the store's that the batch does not repeat, then the batch's."""

    ids: Indexes
    rows: Rows
    batch_start: int
    is_known: Flags  # of the batch's rows: the store holds it already

    @classmethod
    def of(cls, which: Indexes, rows: Rows, batch: Rows, batch_ids: Indexes) -> Side:
        is_known = np.zeros(len(batch), bool)
        if not len(rows):
            return cls(batch_ids, batch, 0, is_known)
        if len(batch) and rows["offset"].max() >= batch["offset"].min():  # else the store is not ahead of the log
            near = np.flatnonzero(np.isin(batch["offset"], rows["offset"]))
            stored = (
                {_place(i, row): n for n, (i, row) in enumerate(zip(which, rows, strict=True))} if len(near) else {}
            )
            repeated: list[int] = []
            for i in near:
                at = stored.get(_place(batch_ids[i], batch[i]))
                if at is not None:
                    is_known[i] = True
                    repeated.append(at)
            which, rows = np.delete(which, repeated), np.delete(rows, repeated)
        return cls(np.concatenate([which, batch_ids]), joined([rows, batch]), len(which), is_known)

    @property
    def is_distinct(self) -> bool:
        """Whether no id has two rows, which is the usual case."""
        return bool(np.bincount(self.ids).max(initial=0) <= 1)

    def first(self, count: int) -> Indexes:
        """Index of every id's first row in the order, -1 if it has none."""
        place = np.full(count, -1, np.int64)
        places = np.arange(len(self.ids))
        place[self.ids] = places
        repeated = self.ids[place[self.ids] != places]
        if len(repeated):  # only ids with several rows need their order
            some = np.flatnonzero(np.isin(self.ids, repeated))
            rows, ids = self.rows.take(some), self.ids[some]
            by = np.lexsort((rows["offset"], rows["order"], ids))
            heads = np.flatnonzero(np.diff(ids[by], prepend=-1))
            place[ids[by][heads]] = some[by[heads]]
        return place


def _place(number: Any, row: Any) -> tuple[int, int, int]:
    """What makes a record the same record: its id, its topic and its offset."""
    return int(number), int(row["order"]) % ORDER_TOPICS, int(row["offset"])


def without(rows: Rows, flags: Flags) -> Rows:
    return rows.take(np.flatnonzero(~flags)) if flags.any() else rows


@dataclass
class Sequenced:
    """Feedback that counts, by id, kind and order; duplicates and overtaken timers are out."""

    index: Indexes  # into the side's rows
    ids: Indexes
    rows: Rows
    has_previous: Flags  # the row before is the same id's and kind's
    is_last_before: Flags

    @classmethod
    def of(cls, said: Side) -> Sequenced:
        rows, ids = said.rows, said.ids
        if said.is_distinct:
            kept = np.argsort(ids)
            nothing = np.zeros(len(ids), bool)
            return cls(kept, ids[kept], rows.take(kept), nothing, ~nothing)
        by = np.lexsort((rows["offset"], rows["order"], rows["f1"], ids))
        is_first = np.ones(len(by), bool)
        is_first[1:] = (ids[by][1:] != ids[by][:-1]) | (rows["f1"][by][1:] != rows["f1"][by][:-1])
        kept = by[is_first]
        kept = kept[np.lexsort((rows["offset"][kept], rows["order"][kept], rows["kind"][kept], ids[kept]))]
        kept_ids, kept_rows = ids[kept], rows.take(kept)
        has_previous = _same_as_previous(kept_ids, kept_rows["kind"])
        overtaken = (kept_rows["undecided"] == 1) & has_previous  # a truth came before the time ran out
        if overtaken.any():
            kept, kept_ids, kept_rows = kept[~overtaken], kept_ids[~overtaken], without(kept_rows, overtaken)
            has_previous = _same_as_previous(kept_ids, kept_rows["kind"])
        return cls(kept, kept_ids, kept_rows, has_previous, np.append(~has_previous[1:], True)[: len(kept)])


def _same_as_previous(ids: Indexes, kinds: Any) -> Flags:
    same = np.zeros(len(ids), bool)
    same[1:] = (ids[1:] == ids[:-1]) & (kinds[1:] == kinds[:-1])
    return same


def last_known(sequence: Sequenced, which: Indexes, order: Indexes, offset: Indexes) -> tuple[Indexes, Indexes]:
    """For the ids of these rows of the sequence, each at a place in the order: the last truth and the last user's word
    up to there, -1 if there is none."""
    found: list[Indexes] = []
    ids = sequence.ids[which]
    is_single = len(sequence.ids) < 2 or bool((sequence.ids[1:] != sequence.ids[:-1]).all())
    for kind in (KIND_TRUTH, KIND_USER):
        if is_single:  # the usual case: what is known is the row itself
            found.append(np.where(sequence.rows["kind"][which] == kind, which, -1))
            continue
        place = np.flatnonzero(sequence.rows["kind"] == kind)
        if not len(place) or not len(ids):
            found.append(np.full(len(ids), -1, np.int64))
            continue
        own, own_ids = sequence.rows.take(place), sequence.ids[place]
        rank = _ranks(np.concatenate([own["order"], order]), np.concatenate([own["offset"], offset]))
        width = rank.max() + 1
        keys = own_ids * width + rank[: len(place)]
        at = np.searchsorted(keys, ids * width + rank[len(place) :], side="right") - 1
        hit = (at >= 0) & (own_ids[np.maximum(at, 0)] == ids)
        found.append(np.where(hit, place[np.maximum(at, 0)], -1))
    return found[0], found[1]


def _ranks(order: Indexes, offset: Indexes) -> Indexes:
    """Numbers in the order of (order, offset), the same for the same."""
    by = np.lexsort((offset, order))
    is_next = (np.diff(order[by], prepend=order[by[0]]) != 0) | (np.diff(offset[by], prepend=offset[by[0]]) != 0)
    rank = np.empty(len(by), np.int64)
    rank[by] = np.cumsum(is_next)
    return rank
