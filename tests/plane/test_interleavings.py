"""Any interleaving of deliveries, crashes, restarts and rebalances of two planes gives what a plain computation gives.

Hypothesis decides what happens next; the planes run in turns on a Kafka in memory.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from schemas.events import SOURCES, topic
from schemas.registry import Codec, FileRegistry
from streams import crash
from streams.plane.testing import Killed, Plane
from streams.testing.group import Group, Member
from streams.testing.oracle import Oracle, Settings, belongs
from streams.testing.outputs import Outputs
from streams.testing.world import SKEW_US, WINDOW_US, Event, World

PARTITIONS = 2
NAMES = ("one", "other")
TURNS_MAX = 4_000
POINTS = ("emit:before", "emit:summaries", "flush:before", "flush:after", "commit:before", "commit:after",
          "checkpoint:run", "checkpoint:written", "checkpoint:replaced", "archive:written")  # fmt: skip
names, numbers, nouns = st.sampled_from(NAMES), st.integers(0, PARTITIONS - 1), st.sampled_from(SOURCES)


@cache
def world() -> World:
    return World(FileRegistry(Path(tempfile.mkdtemp()) / "registry.json"))


class Planes(RuleBasedStateMachine):
    """Two planes of one group, each with its own join store, and one archive."""

    @initialize(
        seed=st.integers(0, 1_000),
        batch=st.sampled_from((20, 200)),
        segment=st.sampled_from((16, 64)),
    )
    def begin(self, seed: int, batch: int, segment: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.segment = segment
        self.group = Group(PARTITIONS, seed)
        self.patch = pytest.MonkeyPatch()
        for name, fake in self.group.fakes.items():
            self.patch.setattr(name, fake)
        world().seed = seed
        self.waiting: dict[str, list[Event]] = {noun: [] for noun in SOURCES}
        for event in world().events(60):
            self.waiting[event.noun].append(event)
        self.sent: list[Event] = []
        for name in NAMES:
            (self.folder / name).mkdir()
            more: dict[str, Any] = {"batch_records": batch, "segment_records": segment}
            plane = Plane(world(), self.folder / name, archive_dir=self.folder / "archive", **more)
            Member(self.group, name, plane).start()
        self.group.target = dict.fromkeys(range(PARTITIONS), NAMES[0])

    def teardown(self) -> None:
        if not hasattr(self, "group"):
            return
        try:
            self._finish()
        finally:
            crash.hook = None
            self.patch.undo()
            shutil.rmtree(self.folder)

    def member(self, name: str) -> Member:
        return self.group.members[name]

    # -- what happens -------------------------------------------------------------------------------------------------

    @rule(noun=nouns, count=st.integers(1, 40))
    def deliver(self, noun: str, count: int) -> None:
        """The topics advance independently: what belongs together comes in any order."""
        for event in self.waiting[noun][:count]:
            self._append(event)
        del self.waiting[noun][:count]

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 10**6))
    def deliver_again(self, which: int) -> None:
        self._append(self.sent[which % len(self.sent)])

    @rule(ms=st.integers(1, 3_000))
    def wait(self, ms: int) -> None:
        self.group.pass_ms(ms)

    @rule(name=names, turns=st.integers(1, 30))
    def work(self, name: str, turns: int) -> None:
        for _ in range(turns):
            self.member(name).turn()

    @rule(name=names, calls=st.integers(1, 30), forgets=st.booleans())
    def kill_at_a_call(self, name: str, calls: int, forgets: bool) -> None:
        self.group.kill_at = self.group.calls + calls
        self._work_until_dead(name, forgets=forgets)
        self.group.kill_at = -1

    @rule(name=names, point=st.sampled_from(POINTS), forgets=st.booleans())
    def kill_at_a_point(self, name: str, point: str, forgets: bool) -> None:
        def hook(passed: str) -> None:
            if passed == point:
                raise Killed

        crash.hook = hook
        self._work_until_dead(name, forgets=forgets)
        crash.hook = None

    @rule(number=numbers, name=names)
    def move(self, number: int, name: str) -> None:
        self.group.target[number] = name

    @rule(name=names)
    def hang(self, name: str) -> None:
        member, other = self.member(name), NAMES[1 - NAMES.index(name)]
        if member.is_alive and not member.is_hanging:
            member.hang()
            self.group.target = dict.fromkeys(range(PARTITIONS), other)

    @rule(name=names)
    def wake(self, name: str) -> None:
        self.member(name).wake()

    # -- hands --------------------------------------------------------------------------------------------------------

    def _append(self, event: Event) -> None:
        self.sent.append(event)
        self.group.append(topic(event.noun), belongs(event.key, PARTITIONS), event.key, event.value)

    def _work_until_dead(self, name: str, *, forgets: bool) -> None:
        member = self.member(name)
        for _ in range(40):
            member.turn()
        if not member.is_alive:
            if forgets:
                shutil.rmtree(member.plane.settings.join_dir, ignore_errors=True)
            self.group.kill_at, crash.hook = -1, None
            member.start()

    def _finish(self) -> None:
        for noun in SOURCES:
            self.deliver(noun, len(self.waiting[noun]))
        self.group.pass_ms(5_000)
        outputs, read = Outputs(Codec(world().registry)), 0
        ends = {key: len(log) for key, log in self.group.logs.items() if log}
        for name in NAMES:
            self.wake(name)
        for _ in range(TURNS_MAX):
            for name in NAMES:
                self.member(name).turn()
            for sent_to, _, value in self.group.sent[read:]:
                outputs.add(sent_to, value)
            read = len(self.group.sent)
            if outputs.merger.ends == ends and self._committed() == self._complete():
                break  # the summaries may be a fenced member's, whose commits were refused
        else:
            raise AssertionError(f"worked on {outputs.merger.ends} of {ends}, committed {self._committed()}")
        for name in NAMES:
            self.member(name).end()
        for sent_to, _, value in self.group.sent[read:]:
            outputs.add(sent_to, value)
        oracle = Oracle(
            world().oracle_models(), world().schemas(), Settings(self.segment, WINDOW_US, SKEW_US, PARTITIONS)
        )
        topics = {p: self.group.topics(p) for p in range(PARTITIONS)}
        outputs.compare({p: oracle.run(p, records) for p, records in topics.items()})
        assert self._committed() == self._complete()

    def _committed(self) -> dict[tuple[str, int], int]:
        """Segments of each log up to what is committed."""
        return {key: at.offset // self.segment for key, at in self.group.commits.items()}

    def _complete(self) -> dict[tuple[str, int], int]:
        """Complete segments of each log."""
        places = [(topic(noun), p) for noun in SOURCES for p in range(PARTITIONS)]
        return {place: len(self.group.logs[place]) // self.segment for place in places}


TestInterleavings = pytest.mark.timeout(900)(pytest.mark.slow(Planes.TestCase))
Planes.TestCase.settings = settings(max_examples=40, stateful_step_count=40, suppress_health_check=list(HealthCheck))


def test_a_number_whose_topics_come_one_by_one_to_a_new_owner_is_worked_on() -> None:
    planes = Planes()
    planes.begin(seed=0, batch=20, segment=16)
    planes.hang(NAMES[0])
    planes.teardown()
