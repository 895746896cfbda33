"""Whatever the plane is given, however it is cut and killed: it finds what a plain computation finds."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from schemas.parts import AUDIT_ERROR, AUDIT_ERROR_SQ, AUDIT_N, DELAY, N_AUDIT_TRUTH
from schemas.registry import Codec, FileRegistry
from schemas.times import DAY_US, HOUR_US
from streams.plane.horizon import Horizon
from streams.plane.memory import Memory
from streams.plane.testing import FakeKafka, Killed, Plane
from streams.testing.oracle import Oracle, Result, Settings
from streams.testing.outputs import Outputs
from streams.testing.world import SKEW_US, START_US, WINDOW_US, Event, World

SLOW = settings(max_examples=20, suppress_health_check=list(HealthCheck))


class Run:
    """One log and one state directory, on which planes are started and killed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, kafka: FakeKafka, world: World, **more: Any):
        self.kafka, self.world, self.folder = kafka, world, folder
        self.plane = Plane(world, folder, **more)
        for name, fake in kafka.fakes.items():
            monkeypatch.setattr(name, fake)

    def start(self, kill_at: int = -1) -> bool:
        """Run a plane until everything is worked on, or it is killed; whether it came to its end."""
        kafka = self.kafka
        kafka.calls, kafka.kill_at = 0, kill_at
        kafka.stop.clear()
        try:
            self.plane.make(self.world.registry, {"group.protocol": "consumer"}, {}).run(kafka.stop)
        except Killed:
            return False
        return True

    def result(self) -> Outputs:
        outputs = Outputs(Codec(self.world.registry))
        for name, _, value in self.kafka.sent:
            outputs.add(name, value)
        return outputs

    def expected(self) -> dict[int, Result]:
        oracle = Oracle(
            self.world.oracle_models(),
            self.world.schemas(),
            Settings(
                self.plane.segment_records,
                WINDOW_US,
                SKEW_US,
                self.kafka.partitions,
                Horizon.of(self.plane.settings.join_horizon_s).epoch_ms,
            ),
        )
        return {p: oracle.run(p, self.kafka.topics(p)) for p in range(self.kafka.partitions)}

    def check(self) -> None:
        """Everything found is everything expected."""
        self.result().compare(self.expected())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(FileRegistry(tmp_path / "registry.json"))


@pytest.fixture
def folder() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp())
    yield place
    shutil.rmtree(place)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World) -> Any:
    """Makes a Run with its own state."""

    def make(seed: int, predictions: int, partitions: int = 2, *, is_log_append: bool = True, **more: Any) -> Run:
        world.seed = seed
        kafka = FakeKafka(partitions, seed, is_log_append=is_log_append)
        kafka.fill(world.events(predictions))
        return Run(Path(tempfile.mkdtemp(dir=tmp_path)), monkeypatch, kafka, world, **more)

    return make


def test_one_uninterrupted_run_finds_everything(runs: Any) -> None:
    run = runs(1, 800)
    assert run.start()
    run.check()


def test_with_no_memory_to_spare_a_worker_reads_what_it_needs_to_go_on_and_finds_everything(runs: Any) -> None:
    run = runs(1, 800, more={"memory": Memory(1)})
    assert run.start()
    run.check()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_feedback_whose_prediction_never_comes_is_told_of_and_lives_end_for_everything(runs: Any, seed: int) -> None:
    run = runs(seed, 800, more={"join_horizon_s": 1})
    assert run.start()
    run.check()
    orphans = [place for place, reason in run.result().dead.items() if reason == "orphan"]
    assert {name for name, _, _ in orphans} == {"feedback"}
    assert len(orphans) > 10


CUTS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "batch_records": st.sampled_from((20, 60, 400, 5_000)),
        "segment_records": st.sampled_from((16, 100, 256, 4_096)),
        "is_log_append": st.booleans(),
        "predictions": st.sampled_from((30, 120)),
        "more": st.sampled_from(({}, {"join_horizon_s": 1}, {"memory": Memory(1)})),
    }
)


@SLOW
@given(cut=CUTS)
def test_no_cut_of_the_batches_changes_what_is_found(runs: Any, cut: dict[str, Any]) -> None:
    run = runs(**cut)
    assert run.start()
    run.check()


@SLOW
@given(cut=CUTS, kills=st.lists(st.integers(1, 400), max_size=6), forgets=st.booleans())
def test_no_kill_at_any_call_changes_what_is_found(
    runs: Any, cut: dict[str, Any], kills: list[int], forgets: bool
) -> None:
    run = runs(**cut)
    for kill_at in kills:
        run.start(kill_at)
        if forgets:
            shutil.rmtree(run.plane.settings.join_dir, ignore_errors=True)
    assert run.start()
    run.check()


def test_a_full_disk_under_the_join_store_changes_nothing_and_is_told_once(
    runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a cache: the worker goes on without checkpoints, and makes one when there is room again."""
    run, save, saves = runs(8, 400), np.save, 0

    def no_room(file: Any, array: Any) -> None:
        nonlocal saves
        saves += 1
        if 3 < saves < 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array)

    monkeypatch.setattr("streams.plane.loop.CHECKPOINT_INTERVAL_S", 1.0)
    monkeypatch.setattr("streams.plane.store.np.save", no_room)
    with capture_logs() as told:
        assert run.start()
    run.check()
    assert saves > 9
    assert [each["event"] for each in told if "saved" in each["event"]] == [
        "join_store_not_saved",
        "join_store_saved_again",
    ]


def added_up(segments: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], dict[int, int]]:
    """The sum of segments, without what is zero."""
    sums: dict[tuple[Any, ...], Counter[int]] = {}
    for segment in segments:
        for key, counts in segment["parts"].items():
            sums.setdefault(key, Counter()).update(counts)
    kept = {key: {code: n for code, n in counts.items() if n} for key, counts in sums.items()}
    return {key: counts for key, counts in kept.items() if counts}


def but_the_audit(sums: dict[tuple[Any, ...], dict[int, int]]) -> dict[tuple[Any, ...], dict[int, int]]:
    """What the audit picks follows from the place in the log, and never is of an earlier one."""
    of_audit = {N_AUDIT_TRUTH, AUDIT_ERROR, AUDIT_ERROR_SQ, *range(AUDIT_N, DELAY)}
    return {key: {code: n for code, n in counts.items() if code not in of_audit} for key, counts in sums.items()}


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_new_log_goes_on_where_the_archive_of_the_last_one_ends(runs: Any, seed: int) -> None:
    """The embedded broker forgets everything; what is sent again counts once, and late truths find their prediction."""
    events = [event for event in runs(seed, 300, partitions=1).world.events(300)]
    half = len(events) // 2
    check_two_logs(runs, seed, events[:half], events[half // 2 :])


def test_what_comes_of_earlier_logs_counts_in_no_hour_that_was_judged(runs: Any) -> None:
    """A truth is the first record of the new log; neither model has a time-out, event time is five hours further."""
    world = runs(1, 0).world

    def events(identifier: str, hours: int) -> list[Event]:
        common = {"prediction_id": identifier, "model": "digit", "event_time": START_US - DAY_US + hours * HOUR_US}
        asked = common | {"subject": None, "features": {"ink": 0.5, "pen": "a"}}
        told = {"version": "1", "role": "champion", "score": 0.5, "label": "0", "truth_due": None}
        truth: dict[str, Any] = {
            "feedback_id": identifier,
            "kind": "truth",
            "label": "1",
            "value": None,
            "facts": [],
            "note": None,
        }
        values = {"inputs": world.value("digit", asked), "predictions": world.value("predictions", common | told)}
        values["feedback"] = world.value("feedback", common | truth | {"facts": []})
        return [Event(noun, identifier.encode(), value) for noun, value in values.items()]

    early, later = events("early", 0), events("later", 5)
    check_two_logs(runs, 1, [*early[:2], *later[:2]], [early[2], *events("last", 5)])


def check_two_logs(runs: Any, seed: int, before: Sequence[Event], after: Sequence[Event]) -> None:
    """What is found of two logs of embedded brokers, one after the other, is what one log would have given."""
    first = runs(seed, 0, partitions=1)
    first.kafka.fill(before)
    assert first.start()
    ends = first.result().merger.ends
    second = runs(seed, 0, partitions=1)
    second.kafka.now_ms = first.kafka.now_ms
    second.kafka.fill(after)
    earlier = {("fake", name, p): end for (name, p), end in ends.items()}
    second.plane = Plane(second.world, first.folder, cluster="next", is_embedded=True, more={"earlier": earlier})
    assert second.start()
    found = [segment for run in (first, second) for segment in run.result().merger.segments(0).values()]
    logs = []
    for old, new in zip(first.kafka.topics(0), second.kafka.topics(0), strict=True):
        logs.append([*old, *(replace(record, offset=record.offset + len(old)) for record in new)])
    oracle = Oracle(first.world.oracle_models(), first.world.schemas(), Settings(256, WINDOW_US, SKEW_US, 1))
    result = oracle.run(0, logs)
    expected = added_up(segment.plain() for segment in result.segments.values())
    assert but_the_audit(added_up(found)) == but_the_audit(expected)
    rules = {(f["failure_id"], f["truth"], f["user"]) for run in (first, second) for f in run.result().failures}
    wanted = {(f["failure_id"], f["truth"], f["user"]) for f in map(dict, result.failures) if f["rule"] != "audit"}
    assert {f for f in rules if not f[0].endswith("/audit")} == wanted
