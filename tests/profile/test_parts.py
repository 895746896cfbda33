"""Counters add, subtract and do not depend on order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import parts
from schemas.parts import CodeArray, Ints, Part, group, merge, negate, score_bin, truth_counters

Counter = tuple[CodeArray, Ints]
counters = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.integers(-5, 5)), max_size=20).map(
        lambda pairs: (
            np.array([c for c, _ in pairs], dtype=np.int32),
            np.array([n for _, n in pairs], dtype=np.int64),
        )
    ),
    max_size=6,
)


def same(a: Counter, b: Counter) -> bool:
    return np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


@settings(max_examples=100, deadline=None)
@given(counters, st.randoms())
def test_merging_is_associative_commutative_and_undone_by_retraction(listed: list[Counter], rnd: object) -> None:
    whole = merge(listed)
    shuffled = list(listed)
    rnd.shuffle(shuffled)  # type: ignore[attr-defined]
    assert same(whole, merge(shuffled))
    half = len(listed) // 2
    assert same(whole, merge([merge(listed[:half]), merge(listed[half:])]))
    if listed:
        assert same(merge([whole, negate(*listed[0])]), merge(listed[1:]))


def test_the_literal_edges_are_the_logits_they_claim_to_be() -> None:
    logits = np.arange(-63, 64) / 8
    assert np.allclose(parts.SCORE_EDGES, 1 / (1 + np.exp(-logits)), atol=5.1e-10, rtol=0)
    assert len(parts.SCORE_EDGES) == parts.SCORE_BINS - 1
    assert np.all(np.diff(parts.SCORE_EDGES) > 0)
    assert score_bin(parts.SCORE_EDGES).tolist() == list(range(1, 128))


def test_losses_are_integers_of_a_millionth_per_row() -> None:
    p, y = np.array([0.25, 1.0, 0.0, 0.9]), np.array([0.0, 0.0, 0.0, 1.0])
    by_code = {c: n for c, n in truth_counters(p, y, "binary") if isinstance(c, int)}
    assert np.asarray(by_code[parts.LOG_LOSS]).tolist() == [
        round(-math.log(0.75) * 1e6), round(-math.log(1e-6) * 1e6), round(-math.log(1 - 1e-6) * 1e6),
        round(-math.log(0.9) * 1e6),
    ]  # fmt: skip
    assert np.asarray(by_code[parts.BRIER]).tolist() == [62_500, 1_000_000, 0, 10_000]
    assert np.asarray(by_code[parts.SUM_PQ]).tolist() == [187_500, 0, 0, 90_000]
    assert by_code[parts.N_TRUTH] == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(-1, 3)), max_size=40), st.randoms())
def test_grouping_rows_equals_adding_them_one_by_one(rows: list[tuple[float, bool, int]], rnd: object) -> None:
    def run(listed: list[tuple[float, bool, int]]) -> dict[int, Counter]:
        p = np.array([r[0] for r in listed], dtype=np.float64)
        y = np.array([float(r[1]) for r in listed], dtype=np.float64)
        g = np.array([r[2] for r in listed], dtype=np.int64)
        return {owner: (c, n) for owner, c, n in group(g, truth_counters(p, y, "binary"))}

    whole = run(rows)
    shuffled = list(rows)
    rnd.shuffle(shuffled)  # type: ignore[attr-defined]
    split = [run(shuffled[::2]), run(shuffled[1::2])]
    assert set(whole) == set(split[0]) | set(split[1])
    for owner, counter in whole.items():
        assert same(counter, merge([half[owner] for half in split if owner in half]))
        assert dict(zip(*(a.tolist() for a in counter), strict=True))[parts.N_TRUTH] == sum(r[2] == owner for r in rows)


def test_code_ranges_do_not_overlap() -> None:
    assert parts.confusion_code(63, 63) < parts.OUTSIDE
    assert parts.confusion_code(99, 0) == parts.confusion_code(63, 0)
    assert parts.CALIBRATION_P + 128 <= parts.CONFUSION
    assert parts.cell_code(0, 0) == parts.CELLS
    assert parts.cell_code(3, 127) + 1 == parts.cell_code(4, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_strange_values_cannot_overflow_a_sum(value: float) -> None:
    assert abs(int(parts.micro(np.array([value]))[0])) <= 9 * 10**18


def test_a_part_reads_as_a_dictionary_without_zeros() -> None:
    part = Part("m", "1", "champion", "all", "event", 0, np.array([0, 4, 0], np.int32), np.array([2, 1, -2], np.int64))
    assert part.as_dict() == {4: 1}


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1))
def test_the_bin_of_a_score_is_that_of_a_search_among_the_edges(scores: list[float]) -> None:
    edges = parts.SCORE_EDGES
    near = np.concatenate([edges, np.nextafter(edges, 0.0), np.nextafter(edges, 1.0)])
    p = np.concatenate([np.array(scores), near, 1.0 - near])
    assert parts.score_bin(p).tolist() == np.searchsorted(edges, p, side="right").tolist()


@given(st.lists(st.integers(-(2**60), 2**60), min_size=1))
def test_the_bin_of_a_delay_is_that_of_a_search_among_the_edges(delays: list[int]) -> None:
    edges = parts.DELAY_EDGES_US
    delay = np.concatenate([np.array(delays, np.int64), edges - 1, edges, edges + 1])
    found = parts.delay_code(delay, np.zeros(len(delay))) - parts.DELAY
    assert found.tolist() == np.searchsorted(edges, delay, side="right").tolist()


def test_rows_that_count_nothing_are_no_group() -> None:
    groups, ones, zeros = np.array([0, 0, 1]), np.array([0, 0, 3]), np.zeros(3, np.int64)
    assert group(groups, [(5, zeros)]) == []
    ((owner, codes, counts),) = group(groups, [(5, ones)])
    assert (owner, codes.tolist(), counts.tolist()) == (1, [5], [3])
