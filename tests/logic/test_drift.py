"""Counts, baseline, evidence: the formulas against plain loops, and the bound that saves the logarithms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.parts import N_INPUT, Part, cell_code
from schemas.profile import FieldSpec, Profile, build_profile
from schemas.times import HOUR_US
from streams.logic.baseline import Baseline, Spread, Trail, Windows, likeness, smooth
from streams.logic.counts import HourlyCounts, Layout, LocalHours
from streams.logic.drift import candidates, divergence, evidence, line
from streams.logic.policy import MonitorPolicy
from streams.logic.testing import FIRST_US, World, learn_profile, make_monitor, make_parts

POLICY = MonitorPolicy()


def small_layout() -> Layout:
    x = pl.Series("x", np.random.default_rng(1).normal(size=500))
    c = pl.Series("c", ["a", "b"] * 250)
    profile = build_profile(pl.DataFrame([x, c]), [FieldSpec("x", "number"), FieldSpec("c", "category")], model="m")
    return Layout(profile, ("all", "c=a"))


def part(layout: Layout, hour: int, cells: dict[tuple[int, int], int], slice_name: str = "all") -> Part:
    codes = [N_INPUT, *(cell_code(f, k) for f, k in cells)]
    counts = [sum(n for (f, _), n in cells.items() if f == 0), *cells.values()]
    window = hour * HOUR_US
    return Part(
        "m", "1", "champion", slice_name, "event", window, np.array(codes, np.int32), np.array(counts, np.int64)
    )


def test_cells_land_in_their_columns_and_unknown_codes_nowhere() -> None:
    layout = small_layout()
    counts = HourlyCounts(layout)
    counts.add([part(layout, 5, {(0, 4): 2, (1, 3): 3}), part(layout, 5, {(1, 127): 9, (7, 0): 9}, "c=a")])
    assert counts.cells[5][0, layout.offsets[0] + 4] == 2
    assert counts.cells[5][0, layout.offsets[1] + 3] == 3
    assert counts.cells[5].sum() == 5
    counts.add([part(layout, 5, {(0, 4): 1}, "c=unheard of")])
    assert counts.cells[5].sum() == 5


def test_forgotten_hours_stay_forgotten_and_are_counted() -> None:
    layout = small_layout()
    counts = HourlyCounts(layout)
    counts.add([part(layout, 5, {(0, 4): 1})])
    counts.forget(6)
    counts.add([part(layout, 5, {(0, 4): 1}), part(layout, 6, {(0, 4): 1})])
    assert sorted(counts.cells) == [6]
    assert counts.late == 1


def test_directions_are_cells_and_shares_below_each_edge() -> None:
    layout = small_layout()
    x = np.random.default_rng(2).integers(0, 9, layout.columns)
    spread = layout.spread_out(x)
    feature = layout.profile.features[0]
    assert len(spread) == layout.columns + len(feature.edges) - 1
    labels = [layout.direction_label(d) for d in range(layout.directions)]
    assert labels[0] == "null"
    e = 3
    at = labels.index(f"< {feature.edges[e]:g}", feature.cell_count)
    assert spread[at] == x[4 : 4 + e + 1].sum()
    assert layout.owners.tolist() == sorted(layout.owners.tolist())


def test_local_hours_follow_the_clock_of_the_contract() -> None:
    local = LocalHours("America/New_York")
    spring = local((FIRST_US // HOUR_US) + 69 * 24)[0]  # 10 March 2024: the clocks go forward
    assert [len(local.hours_of(day)) for day in (spring - 1, spring, spring + 1)] == [24, 23, 24]
    assert local(FIRST_US // HOUR_US)[1] == 0


def test_the_baseline_is_the_shrunk_share_of_the_notes() -> None:
    rng = np.random.default_rng(3)
    n = rng.integers(0, 50, (24, 1))
    x = rng.binomial(n, 0.3)
    found = smooth(x, n)
    for b in range(24):
        whole = (x.sum() + 0.5) / (n.sum() + 1)
        three = [(b - 1) % 24, b, (b + 1) % 24]
        near = (x[three].sum() + 10 * whole) / (n[three].sum() + 10)
        assert found[b, 0] == pytest.approx((x[b, 0] + 20 * near) / (n[b, 0] + 20), rel=1e-12)


def test_windows_equal_a_plain_sum_over_hours() -> None:
    world = World(40)
    profile = learn_profile(world.served())
    monitor = make_monitor(profile, 36)
    monitor.add(make_parts(world.served(), profile))
    monitor.advance(FIRST_US + 38 * 24 * HOUR_US)
    today, local = monitor.today, monitor.local
    assert today is not None
    hour = monitor.next_hour - 5
    baseline = replace(today.baseline, alike=np.full_like(today.baseline.alike, 0.4))
    windows = baseline.windows(Trail(monitor.counts, local, (2, 8)), 20, hour)
    d = 7
    for w in range(len(windows.rows)):
        length, s = (2, 8)[windows.length[w]], int(windows.slice[w])
        x = n = e = v = t = 0.0
        for h in range(hour - length + 1, hour + 1):
            rows = float(monitor.counts.scalar(h, N_INPUT)[s])
            share = today.baseline.shares[s, local(h)[1], d]
            t += 0.4 * rows * (rows - 1) * share * (1 - share)
            x += monitor.layout.spread_out(monitor.counts.cells[h])[s, d]
            n, e, v = n + rows, e + rows * share, v + rows * share * (1 - share)
        assert (windows.rows[w], windows.x[w, d]) == (n, x)
        assert windows.expected[w, d] == pytest.approx(e)
        assert windows.variance[w, d] == pytest.approx(v)
        assert windows.together[w, d] == pytest.approx(t)


def one_window(x: float, n: int, e: float, layout: Layout, pairs: float = 0.0) -> Windows:
    """``pairs``: of rows of one hour that are alike."""
    full, v = np.full((1, layout.directions), 0.0), e * (1 - e)
    first = np.zeros(1, np.int64)
    return Windows(first, first, np.array([n]), full + x, full + n * e, full + n * v, full + pairs * v)


LIKENESS_SLICES = ("all", "c=a", "c=b")


def hourly(share: float, days: int, is_state: bool) -> tuple[HourlyCounts, Layout]:
    """Twenty rows an hour of c=a in the cells "a" and "b" of "c", drawn by row or by hour; two rows of c=b by row."""
    layout, rng = Layout(small_layout().profile, LIKENESS_SLICES), np.random.default_rng(8)
    counts = HourlyCounts(layout)
    first = layout.profile.features[1].cell_count - 2
    for hour in range(24 * days):
        n = 20 * int(rng.random() < share) if is_state else int(rng.binomial(20, share))
        counts.add([part(layout, hour, {(0, 4): 20, (1, first): n, (1, first + 1): 20 - n}, "c=a")])
        m = int(rng.binomial(2, share))
        counts.add([part(layout, hour, {(0, 4): 2, (1, first): m, (1, first + 1): 2 - m}, "c=b")])
    return counts, layout


def baseline_of(counts: HourlyCounts) -> Baseline:
    return Baseline.of(counts, LocalHours("UTC"), POLICY, 35, lambda hour: True)


def test_a_state_that_all_rows_of_an_hour_share_makes_them_alike_and_rows_by_themselves_are_not() -> None:
    x, c = 0, 1
    shared = baseline_of(hourly(0.3, 28, is_state=True)[0]).alike
    assert shared[1, c] == pytest.approx(1.0)
    assert shared[2, c] > 0.9, "a slice is no less alike than its field"
    assert shared[1, x] == 0.0, "what never varies says nothing"
    alone = baseline_of(hourly(0.3, 28, is_state=False)[0]).alike
    assert alone[1, c] < 0.02


def test_likeness_is_the_share_of_pairs_apart_within_an_hour_against_those_across_days() -> None:
    layout = Layout(small_layout().profile, ("all",))
    hours = np.random.default_rng(9).integers(0, 6, (5, layout.columns))  # five days of one hour of the day
    hours[:, layout.offsets[1] :] = 0
    hours[:, layout.offsets[1]] = hours[:, : layout.offsets[1]].sum(1)
    rows = hours[:, layout.offsets[1]]
    grids = (np.zeros((24, 1, layout.columns), np.int64) for _ in range(2))
    x, squares = grids
    x[7, 0], squares[7, 0] = hours.sum(0), (hours**2).sum(0)
    n, row_squares = np.zeros((24, 1), np.int64), np.zeros((24, 1), np.int64)
    n[7, 0], row_squares[7, 0] = rows.sum(), (rows**2).sum()
    labels = [np.repeat(np.arange(layout.offsets[1]), day[: layout.offsets[1]]) for day in hours]
    within = [a != b for day in labels for i, a in enumerate(day) for b in np.delete(day, i)]
    across = [
        a != b for i, one in enumerate(labels) for k, two in enumerate(labels) if i != k for a in one for b in two
    ]
    found = likeness(x, squares, n, row_squares, layout)
    assert found[0, 0] == pytest.approx(max(0.0, 1 - np.mean(within) / np.mean(across)))
    assert found[0, 1] == 0.0


def test_a_state_that_rows_share_is_known_by_its_hours_not_its_rows() -> None:
    counts, layout = hourly(0.008, 28, is_state=True)
    first = layout.profile.features[1].cell_count - 2
    column, d = layout.offsets[1] + first, int(np.flatnonzero(layout.owners == 1)[first])
    seen = np.zeros(24)
    for hour, cells in counts.cells.items():
        seen[hour % 24] += cells[1, column] > 0
    found = baseline_of(counts).shares[1, :, d]
    unseen = next(b for b in range(24) if seen[[b - 1, b, (b + 1) % 24]].sum() == 0)
    whole = (seen.sum() + 0.5) / (24 * 28 + 1)
    assert found[unseen] == pytest.approx(20 * (10 * whole / (3 * 28 + 10)) / (28 + 20), rel=0.01)
    often = int(seen.argmax())
    assert 0.5 * seen[often] / 28 < found[often] < seen[often] / 28


def test_rows_that_share_a_value_by_the_hour_are_no_evidence_before_some_hours_agree() -> None:
    layout, none = small_layout(), np.zeros((2, 5, 2, small_layout().directions))

    def z(hours: int, alike: float) -> float:
        n = 40 * hours
        window = one_window(float(n), n, 0.001, layout, alike * n * 39)
        return float(evidence(window, none, MonitorPolicy(drift_z=0.1))[0, 0])

    assert z(1, 0.0) > POLICY.drift_z
    assert z(1, 1.0) == pytest.approx(math.sqrt(2 * math.log(1000)), rel=0.1), "an hour is one observation"
    assert z(2, 1.0) < POLICY.drift_z < z(6, 1.0)


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(20, 5000),
    q=st.floats(0, 1),
    e=st.floats(0.001, 0.999),
    icc=st.floats(0, 1),
    side=st.sampled_from([0, 1]),
)
def test_evidence_is_the_tempered_likelihood_ratio_and_the_bound_never_hides_a_candidate(
    n: int, q: float, e: float, icc: float, side: int
) -> None:
    layout = small_layout()
    x = float(round(q * n))
    correlation = np.zeros((2, 5, 2, layout.directions))
    correlation[side] = icc
    found = float(evidence(one_window(x, n, e, layout), correlation, POLICY)[0, 0])
    used = icc if side == (1 if x > n * e else 0) else 0.0
    v = n * e * (1 - e)
    g = v / (v + n * n * (used + POLICY.spread_floor**2) * e * (1 - e))
    share = x / n
    kl = sum(a * math.log(a / b) for a, b in ((share, e), (1 - share, 1 - e)) if a > 0)
    z = math.copysign(math.sqrt(max(0.0, 2 * g * n * kl)), share - e)
    if abs(z) >= POLICY.drift_z:
        assert found == pytest.approx(z, rel=1e-9)
    elif found:
        assert found == pytest.approx(z, rel=1e-6, abs=1e-9)


def test_divergence_of_equal_laws_is_nothing_and_of_certain_ones_finite() -> None:
    found = divergence(np.array([0.3, 0.0, 1.0]), np.array([0.3, 0.2, 0.2]))
    assert found.tolist() == pytest.approx([0.0, -math.log(0.8), -math.log(0.2)])


def test_a_candidate_must_beat_its_own_record() -> None:
    layout = small_layout()
    window = one_window(90.0, 100, 0.1, layout)
    z = evidence(window, np.zeros((2, 5, 2, layout.directions)), POLICY)
    record = np.zeros((5, 2, 2))
    first = candidates(z, window, line(record, POLICY), layout, POLICY)
    assert {c.feature for c in first} == {"x", "c"}
    assert (first[0].rows, first[0].observed) == (100, 0.9)
    assert first[0].expected == pytest.approx(0.1)
    record[0, 0, layout.profile.index["x"]] = abs(float(z[0, 0]))
    assert {c.feature for c in candidates(z, window, line(record, POLICY), layout, POLICY)} == {"c"}


def test_correlated_windows_teach_a_spread_and_independent_ones_none() -> None:
    layout, rng = small_layout(), np.random.default_rng(4)

    def learn(deviation: float) -> float:
        spread = Spread.empty(layout, POLICY.drift_hours)
        for _ in range(200):
            share = np.clip(0.3 + deviation * rng.normal(), 0.01, 0.99)
            window = one_window(float(rng.binomial(500, share)), 500, 0.3, layout)
            spread.fold(1, window)
            spread.end_day(np.ones((2, layout.directions), bool))
        return float(spread.correlation(layout, POLICY)[1, 1, 0, 0, 0])

    correlated = learn(0.1)
    assert correlated == pytest.approx(1.3 * 0.1**2 / (0.3 * 0.7), rel=0.4)
    assert learn(0.0) < 0.004


def test_values_that_are_missing_are_named_and_not_the_share_of_the_others() -> None:
    layout = small_layout()
    first = int(np.flatnonzero(layout.owners == layout.profile.index["x"])[0])
    window = one_window(90.0, 100, 0.1, layout)
    z = np.zeros((1, layout.directions))
    z[0, first], z[0, first + 20] = 9.0, -10.0
    (found,) = candidates(z, window, line(np.zeros((5, 2, 2)), POLICY), layout, POLICY)
    assert (found.direction, found.z) == ("null", 9.0)
    assert found.strength == pytest.approx(10.0 / POLICY.drift_z), "it is judged by the strongest all the same"
    z[0, first] = 7.9
    (found,) = candidates(z, window, line(np.zeros((5, 2, 2)), POLICY), layout, POLICY)
    assert found.direction != "null"


def test_what_is_always_true_teaches_no_spread_and_storms_in_other_slices_do() -> None:
    x = pl.Series("x", np.random.default_rng(1).normal(size=500))
    c = pl.Series("c", ["a", "b"] * 250)
    profile = build_profile(pl.DataFrame([x, c]), [FieldSpec("x", "number"), FieldSpec("c", "category")], model="m")
    layout = Layout(profile, ("all", "c=a", "c=b", "d=z"))
    spread, shape = Spread.empty(layout, POLICY.drift_hours), (4, layout.directions)
    certain, half = 3, 4  # of 'x': one that was true in every row, and one that varies
    spread.scale[...] = 1.0
    spread.excess[:, :, :, :, half] = 0.4
    spread.excess[:, :, :, 2, certain] = 0.9
    occurred = np.zeros(shape, bool)
    occurred[:, half] = occurred[2, certain] = True
    for _ in range(40):
        spread.end_day(occurred)
    found = spread.correlation(layout, POLICY)[1, 0, 0]
    own, pool = found[2, certain], found[3, certain]
    assert found[0, half] == pytest.approx(1.3 * 0.4, rel=0.25)
    assert own > 1.0 * 0.9 * 0.9
    assert found[1, certain] > 2 * pool, "what was seen in c=b may come in c=a"
    assert found[0, certain] == pytest.approx(pool), "all rows and another field's slices know nothing of it"
    assert pool > 0, "its feature's other directions vary"


def test_a_profile_without_numbers_has_directions_too() -> None:
    table = pl.DataFrame({"c": ["a", "b"]})
    profile: Profile = build_profile(table, [FieldSpec("c", "category")], model="m")
    assert Layout(profile, ("all",)).directions == 5
