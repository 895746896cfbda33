"""What each record of a batch adds, as a function of the records before it in the order.

A record joins only with records before it; what two or three records add together is added at the last of them, in that
record's segment. All rows of the ids that a batch touches are laid side by side (the store's and the batch's own), the
first input and the first prediction of an id count, and feedback forms a sequence in which each replaces the one
before. Nothing here depends on where a batch ends, or on whether the store already holds records from after it (it does
when the log is read again after a restart).

::

    order    i1      p1      f1      f2
    adds     -       pair    +f1     +f2 -f1        (+f1: outcome of p1 with truth f1)

    order    f1      f2      p1      i1
    adds     -       -       -       pair +f2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streams.plane.horizon import EPOCHS, Horizon
from streams.plane.plan import KIND_TRUTH, ORDER_TIMER, ORDER_TOPICS, TOPIC_OF_ORDER, ModelPlan
from streams.plane.sides import Flags, Indexes, Sequenced, Side, last_known, without
from streams.plane.store import Hashes, Rows, RunSet, by_hash, joined

EARLIER = 1 << 40
"""The epoch under which the rows of earlier logs are kept, which nobody can read again: it is never over."""


class ModelStore:
    """Pending inputs, predictions and feedback of one partition number and model."""

    def __init__(self, plan: ModelPlan) -> None:
        self.inputs = RunSet(plan.input_type)
        self.predictions = RunSet(plan.prediction_type)
        self.feedback = RunSet(plan.feedback_type)

    def sets(self) -> dict[str, RunSet]:
        """The three sets by name."""
        return {"inputs": self.inputs, "predictions": self.predictions, "feedback": self.feedback}

    @property
    def unsaved_bytes(self) -> int:
        """Of the rows that are in memory only."""
        return sum(runs.unsaved_bytes for runs in self.sets().values())

    def hold(self, mapped_max: int) -> None:
        """Bound this process's mapped memory; see :class:`RunSet`."""
        for runs in self.sets().values():
            runs.mapped_max = mapped_max

    def release(self) -> None:
        """Give the pages of mapped runs back to the system."""
        for runs in self.sets().values():
            runs.release()


@dataclass(frozen=True)
class Pairs:
    """Inputs and predictions that met in this batch.

    ``order`` and ``offset`` are those of the later record, in whose segment the pair is counted.
    """

    inputs: Rows
    predictions: Rows
    order: Indexes
    offset: Indexes

    def __len__(self) -> int:
        return len(self.order)

    def take(self, which: Indexes) -> Pairs:
        """Some of them."""
        return Pairs(self.inputs.take(which), self.predictions.take(which), self.order[which], self.offset[which])


@dataclass(frozen=True)
class Truths:
    """Feedback that took effect in this batch: the outcome of a pair, added (sign 1) or taken back (-1).

    ``order``, ``offset``: of the record at which it takes effect. ``truth`` and ``user`` of an added row: the truth and
    the user's word that are known then (indexes into ``feedback``, -1: none).
    """

    inputs: Rows
    predictions: Rows
    rows: Rows
    sign: Indexes
    order: Indexes
    offset: Indexes
    is_correction: Flags
    truth: Rows
    has_truth: Flags
    user: Rows
    has_user: Flags

    def __len__(self) -> int:
        return len(self.order)


@dataclass(frozen=True)
class Joined:
    """The result of one batch of one partition number and model.

    Attributes
    ----------
    pairs, truths
        What is counted.
    duplicate_inputs, duplicate_predictions, duplicate_feedback
        Offsets of records that an earlier one makes superfluous.
    early, early_lives
        Indexes of feedback that came before its prediction, and the epochs in which the lives of their ids began.
    """

    pairs: Pairs
    truths: Truths
    duplicate_inputs: Indexes
    duplicate_predictions: Indexes
    duplicate_feedback: Indexes
    early: Indexes
    early_lives: Indexes


def distinct(h1: Hashes, h2: Hashes) -> tuple[Hashes, Hashes, Indexes]:
    """Distinct ids sorted by their first half, and the number of every row's id."""
    by = by_hash(h1)
    ordered = h1[by]
    is_head = np.ones(len(by), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_head[1:])
    number = np.empty(len(by), np.int64)
    number[by] = np.cumsum(is_head) - 1
    u1, u2 = ordered[is_head], h2[by[is_head]]
    if (u2[number] == h2).all():
        return u1, u2, number
    both = np.stack([h1, h2], axis=1)  # two ids that share 64 bits in one batch: never seen, and still exact
    u, number = np.unique(both, axis=0, return_inverse=True)
    return u[:, 0].copy(), u[:, 1].copy(), number.reshape(-1)


def join(
    store: ModelStore,
    horizon: Horizon,
    epoch: int,
    inputs: Rows,
    predictions: Rows,
    feedback: Rows,
    timers: Rows,
    timer_of: Indexes,
) -> Joined:
    """Join a batch, and add its new rows to the store.

    Parameters
    ----------
    horizon, epoch
        Whose lives are not over in the epoch, that of all rows of the batch.
    inputs, predictions, feedback
        The batch's rows, with their place in the order.
    timers
        Feedback rows made by time-outs, placed right after the prediction whose event time let them run out.
    timer_of
        Offsets of the predictions that set them; one that is a duplicate sets none.
    """
    given = joined([feedback, timers]) if len(timers) else feedback
    h1 = np.concatenate([rows["h1"] for rows in (inputs, predictions, given)])
    h2 = np.concatenate([rows["h2"] for rows in (inputs, predictions, given)])
    u1, u2, number = distinct(h1, h2)
    n = len(u1)
    a, b = len(inputs), len(inputs) + len(predictions)
    held = [_alive(runs.find(u1, u2, epoch - EPOCHS), horizon, epoch) for runs in store.sets().values()]
    lives = _begun(held, horizon, epoch, n)
    for rows, ids in ((inputs, number[:a]), (predictions, number[a:b]), (given, number[b:])):
        rows["age"] = epoch - lives[ids]
    left = Side.of(*held[0], inputs, number[:a])
    right = Side.of(*held[1], predictions, number[a:b])

    first_input, first_prediction = left.first(n), right.first(n)
    twice_i = _duplicates(left, first_input)
    twice_p = _duplicates(right, first_prediction)
    given_ids = number[b:]
    if len(timers) and twice_p.any():
        kept = np.ones(len(given), bool)
        kept[len(feedback) :] = ~np.isin(timer_of, predictions["offset"][twice_p])
        given, given_ids = given[kept], given_ids[kept]
    said = Side.of(*held[2], given, given_ids)
    store.inputs.add(without(inputs, left.is_known | twice_i), epoch)
    store.predictions.add(without(predictions, right.is_known | twice_p), epoch)

    is_pair = (first_input >= 0) & (first_prediction >= 0)
    order_i = np.where(is_pair, left.rows["order"][first_input], 0) if len(left.rows) else np.zeros(n, np.int64)
    order_p = np.where(is_pair, right.rows["order"][first_prediction], 0) if len(right.rows) else np.zeros(n, np.int64)
    is_late_input = order_i > order_p
    pair_order = np.maximum(order_i, order_p)
    is_new = is_pair & np.where(is_late_input, first_input >= left.batch_start, first_prediction >= right.batch_start)
    new = np.flatnonzero(is_new)
    pair_offset = np.zeros(n, np.int64)
    if len(new):
        offsets_i, offsets_p = left.rows["offset"][first_input[new]], right.rows["offset"][first_prediction[new]]
        pair_offset[new] = np.where(is_late_input[new], offsets_i, offsets_p)
    pairs = Pairs(
        left.rows.take(first_input[new]), right.rows.take(first_prediction[new]), pair_order[new], pair_offset[new]
    )

    sequence = Sequenced.of(said)
    twice_f = np.ones(len(given), bool)
    in_batch = sequence.index[sequence.index >= said.batch_start] - said.batch_start
    twice_f[in_batch] = False
    store.feedback.add(without(given, said.is_known | twice_f), epoch)
    early = np.flatnonzero(~twice_f[: len(feedback)])
    before = first_prediction[given_ids[early]]
    if len(right.rows):
        early = early[(before < 0) | (right.rows["order"][before] > given["order"][early])]
    truths = _truths(
        sequence, said, left.rows, right.rows, first_input, first_prediction, is_pair, pair_order, is_new, pair_offset
    )
    return Joined(
        pairs,
        truths,
        inputs["offset"][twice_i],
        predictions["offset"][twice_p],
        feedback["offset"][twice_f[: len(feedback)]],
        early,
        lives[given_ids[early]],
    )


def _alive(found: tuple[Indexes, Rows], horizon: Horizon, epoch: int) -> tuple[Indexes, Rows]:
    """The rows found whose lives are not over; those of later lives are there when the store is ahead of the log."""
    which, rows = found
    if not len(rows):
        return found
    life = horizon.lives(rows)
    is_alive = ((life >= epoch - EPOCHS) & (life <= epoch)) | (rows["order"] < ORDER_TOPICS)
    return found if is_alive.all() else (which[is_alive], rows.take(np.flatnonzero(is_alive)))


def _begun(held: Sequence[tuple[Indexes, Rows]], horizon: Horizon, epoch: int, count: int) -> Indexes:
    """The epoch in which the life of every id began: this one, if it has none."""
    lives = np.full(count, epoch, np.int64)
    for which, rows in held:
        if len(rows):
            is_own = rows["order"] >= ORDER_TOPICS
            lives[which[is_own]] = horizon.lives(rows)[is_own]
    return lives


def _duplicates(side: Side, first: Indexes) -> Flags:
    """Of the batch's rows: those that are not their id's first."""
    batch = np.arange(side.batch_start, len(side.ids))
    return np.asarray(first[side.ids[batch]] != batch)


def _truths(
    sequence: Sequenced,
    said: Side,
    inputs: Rows,
    predictions: Rows,
    first_input: Indexes,
    first_prediction: Indexes,
    is_pair: Flags,
    pair_order: Indexes,
    is_new_pair: Flags,
    pair_offset: Indexes,
) -> Truths:
    ids, rows = sequence.ids, sequence.rows
    in_batch = sequence.index >= said.batch_start
    is_after = rows["order"] > pair_order[ids]
    is_next_after = np.ones(len(ids), bool)  # no later row of this id and kind stands before the pair
    is_next_after[:-1] = sequence.is_last_before[:-1] | is_after[1:]
    at_pair = np.flatnonzero(is_new_pair[ids] & ~is_after & is_next_after)
    own = np.flatnonzero(is_pair[ids] & is_after & in_batch)
    back = own[sequence.has_previous[own]]
    which = np.concatenate([at_pair, own, back - 1])
    at = np.concatenate([at_pair, own, back])  # the row at which it takes effect, where that is a feedback
    sign = np.concatenate([np.ones(len(at_pair) + len(own), np.int64), -np.ones(len(back), np.int64)])
    is_pair_event = np.arange(len(which)) < len(at_pair)
    order = np.where(is_pair_event, pair_order[ids[which]], rows["order"][at])
    offset = np.where(is_pair_event, pair_offset[ids[which]], rows["offset"][at])
    last = last_known(sequence, which, order, offset)
    return Truths(
        inputs.take(first_input[ids[which]]),
        predictions.take(first_prediction[ids[which]]),
        rows.take(which),
        sign,
        order,
        offset,
        np.where(is_pair_event, False, sequence.has_previous[at]) & (sign > 0) & (rows["undecided"][which] == 0),
        rows.take(last[0]),
        last[0] >= 0,
        rows.take(last[1]),
        last[1] >= 0,
    )


def timer_rows(plan: ModelPlan, h1: Hashes, h2: Hashes, order: Indexes, offset: Indexes) -> Rows:
    """Feedback rows of time-outs, placed after the prediction at ``order`` and ``offset``."""
    rows = np.zeros(len(h1), plan.feedback_type)
    rows["h1"], rows["h2"], rows["offset"] = h1, h2, offset
    rows["order"] = order + (ORDER_TIMER - order % ORDER_TOPICS)
    rows["f1"] = h2  # one time-out an id; a real feedback's hash is of its own id
    rows["value"], rows["facts"] = np.nan, np.nan
    rows["kind"], rows["undecided"] = KIND_TRUTH, 1
    rows["label"] = plan.undecided
    return rows


def topic_of(order: Indexes) -> Indexes:
    """The topic in whose segment a record of this order is counted; a time-out's is that of its prediction."""
    return np.array(TOPIC_OF_ORDER).take(order % ORDER_TOPICS)
