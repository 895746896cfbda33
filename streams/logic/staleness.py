"""How far serving has moved away from training: meters for a page or a digest, none of which wakes anybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streams.logic.counts import Ints, Layout
from streams.logic.coverage import TRAINING, gap
from streams.logic.edetector import Evidence, detect
from streams.logic.policy import MonitorPolicy
from streams.logic.scores import DistanceScores, compare, psi_of_counts

RECENT_DAYS = 7


@dataclass(frozen=True)
class Staleness:
    """One feature against training.

    Attributes
    ----------
    feature
        Its name.
    evidence
        The e-detector on daily counts since deployment.
    recent
        Scores of the last seven days.
    top
        (cell in words, pull) of the cells that moved most.
    """

    feature: str
    evidence: Evidence
    recent: DistanceScores
    top: tuple[tuple[str, float], ...]


def staleness(layout: Layout, daily: Mapping[int, Ints], policy: MonitorPolicy) -> tuple[Staleness, ...]:
    """Every feature of all rows against training, the most stale first.

    Parameters
    ----------
    layout
        Where the counts lie.
    daily
        Local day -> int64[column] of all rows since deployment.
    policy
        Budgets and floor.
    """
    if not daily:
        return ()
    days = np.stack([daily[day] for day in sorted(daily)])
    features = layout.profile.features
    found = []
    for f, feature in enumerate(features):
        if gap(TRAINING, feature, policy) is not None:
            continue
        counts = days[:, layout.offsets[f] : layout.offsets[f + 1]]
        recent = compare(feature, counts[-RECENT_DAYS:].sum(0))
        top = tuple((feature.cell_label(cell), pull) for cell, pull in recent.top)
        found.append(Staleness(feature.name, detect(feature, counts, policy, len(features)), recent, top))
    return tuple(sorted(found, key=lambda s: (-s.recent.eps, s.feature)))


def psi_by_feature(layout: Layout, columns: Ints) -> dict[str, float]:
    """The population stability index of every feature of some rows, int64[column], against training.

    What a monitor with the usual threshold of 0.2 would show: on real traffic it is red every day.
    """
    return {
        feature.name: psi_of_counts(columns[layout.offsets[f] : layout.offsets[f + 1]], np.asarray(feature.weights))
        for f, feature in enumerate(layout.profile.features)
    }
