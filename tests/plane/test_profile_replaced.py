"""A profile that is replaced while a model serves: no count is lost, and cells of two profiles are never added."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from schemas.database import open_database
from schemas.events import envelope, noun, subject, topic
from schemas.parts import Part
from schemas.profile import Profile, build_profile
from schemas.registry import Codec, FileRegistry
from streams.logic.counts import SCALARS, HourlyCounts, Layout
from streams.merging import Merger
from streams.plane.horizon import Horizon
from streams.plane.testing import FakeKafka, Killed, Plane
from streams.testing.oracle import Oracle, Result, Settings
from streams.testing.world import SKEW_US, WINDOW_US, World

PARTITIONS = 2
Windows = dict[tuple[Any, ...], Counter[int]]


def narrower(profiles: Mapping[str, Profile], world: World) -> dict[str, Profile]:
    """Profiles of other rows: other cells under the same codes."""
    made = {}
    for model, old in profiles.items():
        contract = world.contracts[model]
        rows = {f.name: [0.25, 0.5, 0.75] * 50 if f.kind == "number" else [None] * 150 for f in contract.fields}
        table = pl.DataFrame(
            rows, schema_overrides={f.name: pl.String for f in contract.fields if f.kind == "category"}
        )
        score = pl.Series([0.1, 0.5, 0.9] * 50) if old.labels else None
        label = pl.Series([*old.labels] * 150)[:150] if old.labels else None
        made[model] = build_profile(table, contract.fields, model=model, labels=old.labels, score=score, label=label)
    return made


def oracle(world: World, plane: Plane, kafka: FakeKafka) -> dict[int, Result]:
    horizon = Horizon.of(plane.settings.join_horizon_s).epoch_ms
    settings = Settings(plane.segment_records, WINDOW_US, SKEW_US, PARTITIONS, horizon)
    plain = Oracle(world.oracle_models(), world.schemas(), settings)
    return {p: plain.run(p, kafka.topics(p)) for p in range(PARTITIONS)}


def by_window(parts: Any) -> Windows:
    found: Windows = {}
    for part in parts:
        key = (part.profile, part.model, part.version, part.role, part.slice, part.axis, part.window_us)
        found.setdefault(key, Counter()).update(part.as_dict())
    return {key: +counts for key, counts in found.items() if +counts}


def last_words(sent: list[dict[str, Any]]) -> dict[tuple[int, str, int], dict[str, Any]]:
    """The summary of each segment that counts, by partition, noun and start."""
    kept: dict[tuple[int, str, int], dict[str, Any]] = {}
    for message in sent:
        for each in message["segments"]:
            place = (message["partition"], noun(each["topic"]), each["start"])
            known = kept.get(place)
            if known is None or each["end"] > known["end"]:
                kept[place] = each
    return kept


@pytest.mark.parametrize("kill_at", [60, 110, 160])
def test_a_windows_counts_belong_to_the_profile_that_they_were_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    world = World(FileRegistry(tmp_path / "registry.json"))
    world.seed = 4
    kafka = FakeKafka(PARTITIONS, 4)
    kafka.fill(world.events(600))
    for name, fake in kafka.fakes.items():
        monkeypatch.setattr(name, fake)
    plane = Plane(world, tmp_path, segment_records=128)
    kafka.kill_at = kill_at
    with pytest.raises(Killed):
        plane.make(world.registry, {"group.protocol": "consumer"}, {}).run(kafka.stop)
    old, new = world.profiles, narrower(world.profiles, world)
    world.__dict__["profiles"] = new
    kafka.kill_at = -1
    plane.make(world.registry, {"group.protocol": "consumer"}, {}).run(kafka.stop)
    expected: dict[str, dict[int, Result]] = {}
    for profiles in (old, new):
        world.__dict__["profiles"] = profiles
        result = oracle(world, plane, kafka)
        expected |= {profile.profile_id: result for profile in profiles.values()}

    codec = Codec(world.registry)
    sent = [codec.decode(value) for name, _, value in kafka.sent if name == topic("summaries")]
    engine = open_database(f"sqlite:///{tmp_path / 'flywheel.db'}")
    merger = Merger(engine, codec, world.registry.register(subject("summaries"), envelope("summaries")))
    changes = [part for message in sent for part in merger.merge(message, 0).changes]
    wanted: Windows = {}
    for (p, of, start), each in last_words(sent).items():
        for profile in {part["profile"] for part in each["parts"]}:
            segment = expected[profile][p].segments[of, start]
            models = {part["model"] for part in each["parts"] if part["profile"] == profile}
            for key, counts in segment.parts.items():
                if key[0] in models:
                    wanted.setdefault((profile, *key), Counter()).update(counts)
    found = by_window([part for model in world.contracts for part in merger.everything(model)])
    engine.dispose()
    assert found == {key: +counts for key, counts in wanted.items() if +counts}
    assert by_window(changes) == found, "what the monitors are told adds up to the same"
    assert len({profile for profile, *_ in found}) == 2 * len(world.contracts), "both have counted"
    both = Counter(key[1:] for key in found)
    assert max(both.values()) == 2, "a window in the midst of which it was replaced"


def test_cells_of_another_profile_are_not_read_as_ones_own(tmp_path: Path) -> None:
    world = World(FileRegistry(tmp_path / "registry.json"))
    (old,) = [profile for profile in world.profiles.values() if profile.model == "late"]
    new = narrower(world.profiles, world)["late"]
    codes, counts = np.array([0, 3, 10_001], np.int32), np.array([9, 5, 7])
    parts = [Part("late", "1", "champion", "all", axis, 0, codes, counts, old.profile_id) for axis in ("event", "fact")]
    mine = HourlyCounts(Layout(old, ("all",)))
    mine.add(parts)
    assert mine.cells[0].sum() == 7
    others = HourlyCounts(Layout(new, ("all",)))
    others.add(parts)
    assert (others.cells, others.outside, others.facts) == ({}, {}, {})
    assert others.scalar(0, 3).tolist() == [5]
    assert others.scalars[0].shape == (1, SCALARS)
    assert json.loads(new.to_json()) != json.loads(old.to_json())
