"""A group of planes on one :class:`FakeKafka`: they take turns, and partitions move between them at any moment.

Each member is a plane in a thread of its own that runs only while it has its turn: from one call of ``poll`` to the
next. So a test decides every interleaving, and the same decisions give the same run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streams.plane.testing import FakeConsumer, FakeKafka, Killed, Plane

MEMBER = "member"
"""The setting that tells a consumer whose it is."""
Place = tuple[str, int]


class Group(FakeKafka):
    """The broker's side: which member has which partition.

    Attributes
    ----------
    target
        Whose each partition number is meant to be.
    held
        Who has each source partition; a partition is given when nobody has it any more.
    """

    def __init__(self, partitions: int, seed: int) -> None:
        super().__init__(partitions, seed)
        self.members: dict[str, Member] = {}
        self.target: dict[int, str] = {}
        self.held: dict[Place, str] = {}

    def consumer(self, settings: Mapping[str, Any]) -> GroupConsumer:
        """Replaces ``confluent_kafka.Consumer``."""
        return GroupConsumer(self, settings)

    def forget(self, name: str) -> None:
        """The broker gives a member up: it is dead, or was silent for too long."""
        self.held = {place: holder for place, holder in self.held.items() if holder != name}


class GroupConsumer(FakeConsumer):
    """One member's consumer."""

    def __init__(self, kafka: Group, settings: Mapping[str, Any]) -> None:
        super().__init__(kafka, settings)
        self._group, self._name = kafka, str(settings[MEMBER])
        self._own: set[Place] = set()
        self._assigned: Callable[..., None] | None = None
        self._revoked: Callable[..., None] | None = None
        self._lost: Callable[..., None] | None = None

    def subscribe(self, topics: list[str], on_assign: Callable[..., None], **others: Any) -> None:
        self._assigned, self._revoked, self._lost = on_assign, others["on_revoke"], others["on_lost"]

    def poll(self, timeout: float) -> None:
        member = self._group.members[self._name]
        member.wait_for_turn()
        if member.is_fenced and self._group.chance.random() < 0.5:
            return  # it does not know yet, and works on
        self._rebalance(member)

    def _rebalance(self, member: Member) -> None:
        group = self._group
        meant = {place for place in group.logs if group.target.get(place[1]) == self._name}
        gone = self._own if member.is_fenced else self._own - meant
        if gone:
            tell = self._lost if member.is_fenced else self._revoked
            assert tell is not None
            self._own = self._own - gone
            tell(self, [TopicPartition(*place) for place in sorted(gone)])
            for place in gone:
                if group.held.get(place) == self._name:
                    del group.held[place]
        member.is_fenced = False
        free = sorted(place for place in meant - self._own if place not in group.held)
        given = [place for place in free if group.chance.random() < 0.7]  # its topics may come one by one
        if given:
            assert self._assigned is not None
            group.held |= dict.fromkeys(given, self._name)
            self._own = self._own | set(given)
            self._assigned(self, [TopicPartition(*place) for place in given])

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> None:
        if self._group.members[self._name].is_fenced:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID))
        super().commit(offsets, asynchronous)


class Member:
    """One plane, in a thread that runs only while it has its turn.

    Parameters
    ----------
    plane
        Its settings and folder.
    """

    def __init__(self, group: Group, name: str, plane: Plane) -> None:
        self.name, self.plane, self._group = name, plane, group
        self._turn, self._pause = threading.Semaphore(0), threading.Semaphore(0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.is_fenced = self.is_hanging = False
        self.failure: BaseException | None = None
        group.members[name] = self

    @property
    def is_alive(self) -> bool:
        """Whether it runs (it may hang)."""
        return self._thread is not None

    def start(self) -> None:
        """Start it, up to its first call of ``poll``."""
        assert not self.is_alive
        self.is_fenced = self.is_hanging = False
        self._turn, self._pause = threading.Semaphore(0), threading.Semaphore(0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()
        self._paused()

    def _run(self) -> None:
        try:
            settings = {"group.protocol": "consumer", MEMBER: self.name}
            self.plane.make(self.plane.world.registry, settings, {}).run(self._stop)
        except Killed:
            self._group.forget(self.name)
        except BaseException as error:
            self.failure = error
        finally:
            self._thread = None
            self._pause.release()

    def wait_for_turn(self) -> None:
        """Called by the plane's own thread."""
        self._pause.release()
        self._turn.acquire()

    def turn(self) -> None:
        """Let it run to its next call of ``poll``, or to its end."""
        if self.is_alive and not self.is_hanging:
            self._turn.release()
            self._paused()

    def _paused(self) -> None:
        self._pause.acquire()
        if self.failure is not None:
            raise self.failure

    def end(self) -> None:
        """Stop it in order."""
        self._stop.set()
        while self.is_alive:
            self.turn()

    def hang(self) -> None:
        """It is silent for so long that the group gives its partitions to others; it does not know."""
        self.is_hanging = self.is_fenced = True
        self._group.forget(self.name)

    def wake(self) -> None:
        """It goes on where it was."""
        self.is_hanging = False
