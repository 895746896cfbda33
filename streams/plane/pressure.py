"""Reads no more than there is room for: partitions pause, the join store is saved and let go before it gets tight."""

from __future__ import annotations

import structlog

from streams.plane.assignment import TOPICS, Assignment
from streams.plane.fetch import Fetcher, Place
from streams.plane.memory import resident, trim
from streams.plane.settings import PlaneSettings

IN_HAND_BATCHES_MAX = 2
"""A topic is paused when this many micro-batches of one partition are in hand, and goes on at one."""

log = structlog.get_logger("flywheel.plane")


class Pressure:
    """Keeps the memory's bound."""

    def __init__(self, settings: PlaneSettings, fetcher: Fetcher, given: Assignment) -> None:
        self._memory, self._batch_records = settings.memory, settings.batch_records
        self._fetcher, self._given = fetcher, given
        self._paused: set[Place] = set()
        self._is_tight = False

    def has_paused(self, place: Place) -> bool:
        """Whether nothing more of it is asked for, for now."""
        return place in self._paused

    def forget(self, number: int) -> None:
        """Another worker has this partition number now."""
        self._paused = {place for place in self._paused if place[1] != number}

    def throttle(self) -> None:
        """Pause the partitions of which enough is in hand, go on with those of which little is left."""
        numbers = self._given.numbers
        bytes_max = 0 if self._is_tight else self._memory.in_hand_of(len(numbers) * len(TOPICS))
        for number, numbered in numbers.items():
            for each in numbered.frontier.logs:
                place = (TOPICS[each.place], number)
                if place in self._paused:
                    if each.in_hand <= self._batch_records and each.in_hand_bytes <= bytes_max // 2:
                        self._fetcher.pause([place], is_paused=False)
                        self._paused.discard(place)
                elif each.in_hand > IN_HAND_BATCHES_MAX * self._batch_records or each.in_hand_bytes > bytes_max:
                    self._fetcher.pause([place])
                    self._paused.add(place)

    def hold(self) -> bool:
        """See how much there is; returns whether the join store is to be saved before its time."""
        memory, now = self._memory, resident()
        was_tight, self._is_tight = self._is_tight, memory.is_tight(now)
        if self._is_tight:
            trim()
            if not was_tight:
                log.warning("memory_tight", resident_mb=now.anonymous >> 20, bound_mb=memory.bound >> 20)
        unsaved = sum(store.unsaved_bytes for store in self._given.stores)
        return unsaved > (memory.unsaved // 4 if self._is_tight else memory.unsaved)

    def release(self) -> None:
        """After a step: it is what brings pages of files in, and what makes memory tight."""
        now = resident()
        self._is_tight |= self._memory.is_tight(now)
        if now.mapped > self._memory.mapped:
            for store in self._given.stores:
                store.release()
