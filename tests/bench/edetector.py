"""What the staleness meter costs: 500 features, one closed hour's bookkeeping and one look, on a single core.

A look is what the worker does at most once a second after a merged summary; so its CPU is a share of a core. No broker.
"""

from __future__ import annotations

import time

import numpy as np
import polars as pl

from schemas.profile import FieldSpec, Profile, build_profile
from streams.logic.counts import Floats, Ints, Layout, LocalHours
from streams.logic.policy import MonitorPolicy
from streams.logic.staleness import Meter
from tests.bench.trial import Result

FEATURES, FEATURES_SMALL = 500, 20
REFERENCE_ROWS = 10_000
HOURS, HOURS_SMALL = 600, 60
"""After 512 hours every start that there can be is there."""
ROWS = 500
LOOKS, LOOKS_SMALL = 30, 3
MOVED = 0.1
"""Share of the features that left training, so that the screen cannot spare them."""
TARGET = 0.05


def run(*, is_small: bool) -> Result:
    features = FEATURES_SMALL if is_small else FEATURES
    rng = np.random.default_rng(1)
    meter = Meter(Layout(_profile(features, rng), ("all",)), MonitorPolicy(), LocalHours("UTC"))
    hours = HOURS_SMALL if is_small else HOURS
    shares = [np.asarray(f.counts) / sum(f.counts) for f in meter.layout.profile.features]
    quiet = [_hour(rng, shares, 0) for _ in range(hours)]
    meter.learn(list(enumerate(quiet[:48])))
    began = time.process_time()
    for at, counts in enumerate(quiet):
        meter.add(at, counts)
    add_s = (time.process_time() - began) / hours
    looks = LOOKS_SMALL if is_small else LOOKS
    figures: dict[str, float] = {
        "features": features,
        "cells": meter.layout.columns,
        "starts": len(meter.running.marks),
    }
    figures["CPU ms of an hour that closes"] = round(add_s * 1e3, 2)
    for name, moved in (("nothing moved", 0), (f"{MOVED:.0%} moved", round(MOVED * features))):
        for at in range(24 if moved else 0):
            meter.add(hours + at, _hour(rng, shares, moved))
        fresh = [(hours + 24, _hour(rng, shares, moved))]
        began = time.process_time()
        for _ in range(looks):
            reading = meter.look(fresh)
        spent = (time.process_time() - began) / looks
        figures[f"CPU ms of a look, {name}"] = round(spent * 1e3, 1)
        figures[f"share of a core at 1 Hz, {name}"] = round(spent, 4)
        figures[f"features above the line, {name}"] = sum(each.level != "quiet" for each in reading.features)
    return Result(figures, {name: TARGET for name in figures if name.startswith("share")})


def _profile(features: int, rng: np.random.Generator) -> Profile:
    """Three of five are numbers, the others categories of 12 names."""
    fields = [FieldSpec(f"f{i}", "number" if i % 5 < 3 else "category") for i in range(features)]
    columns = {
        field.name: rng.normal(size=REFERENCE_ROWS)
        if field.kind == "number"
        else np.minimum(rng.geometric(0.3, REFERENCE_ROWS), 12).astype(str)
        for field in fields
    }
    return build_profile(pl.DataFrame(columns), fields, model="bench")


def _hour(rng: np.random.Generator, shares: list[Floats], moved: int) -> Ints:
    """Counts of one hour; of the features that moved, the first half of the cells is empty."""
    found = []
    for f, share in enumerate(shares):
        p = share.copy()
        if f < moved:
            p[: len(p) // 2] = 0.0
        found.append(rng.multinomial(ROWS, p / p.sum()))
    return np.concatenate(found)
