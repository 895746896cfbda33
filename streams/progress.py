"""How far event time has come, over all partition numbers, from what each says of itself with its summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Said:
    """What a partition number said last: when, its watermark (and since when it is that), and whether it is idle."""

    time_us: int
    watermark_us: int | None
    since_us: int
    is_idle: bool


@dataclass
class Progress:
    """How far event time has come, over all partitions that may still have something to say.

    A partition that is idle holds nothing back, but only as of the time at which it said so: every idle partition must
    have spoken at or after the newest watermark was reached.
    """

    said: dict[int, Said] = field(default_factory=dict)
    cluster: str = ""
    watermark_us: int | None = None
    partitions: int = 0

    @property
    def quiet_us(self) -> int | None:
        """When the last of the partition numbers said that everything on its topics is worked on; None: one did not."""
        everyone = list(self.said.values())
        if not everyone or len(everyone) < self.partitions or not all(each.is_idle for each in everyone):
            return None
        return min(each.time_us for each in everyone)

    def hear(self, message: Mapping[str, Any]) -> int | None:
        """Take in one message; the watermark that holds now (it never goes back)."""
        if message["cluster"] != self.cluster:
            self.cluster, self.said = message["cluster"], {}
        self.partitions = message["partitions"]
        before = self.said.get(message["partition"], Said(0, None, 0, is_idle=False))
        if message["time"] >= before.time_us:
            watermark, since = before.watermark_us, before.since_us
            if message["watermark"] is not None and message["watermark"] != watermark:
                watermark, since = message["watermark"], message["time"]
            self.said[message["partition"]] = Said(message["time"], watermark, since, message["is_idle"])
        everyone = list(self.said.values())
        idle_at = min((each.time_us for each in everyone if each.is_idle), default=None)
        is_settled = idle_at is None or idle_at >= max(each.since_us for each in everyone)
        if len(everyone) == message["partitions"] and is_settled:
            busy = [each.watermark_us for each in everyone if not each.is_idle]
            known = [each.watermark_us for each in everyone if each.watermark_us is not None]
            if known and None not in busy:
                reached = min(w for w in busy if w is not None) if busy else max(known)
                self.watermark_us = max(reached, self.watermark_us or reached)
        return self.watermark_us
