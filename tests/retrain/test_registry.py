"""Versions and the ledger of aliases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from retrain.errors import AliasMovedError, ApprovalRevokedError, UnknownVersionError
from retrain.registry import Registry, add_version, move_alias, next_number
from retrain.testing import World
from schemas.database import read, write
from schemas.database.outbox import pending
from schemas.errors import UsageError


def add(world: World) -> str:
    registry = Registry(world.engine)
    first = registry.versions("small")[0]
    with write(world.engine) as connection:
        number = next_number(connection, "small")
        add_version(connection, replace(first, version=f"v{number}", number=number))
    return f"v{number}"


def test_what_served_at_a_time_is_a_query(world: World) -> None:
    registry = Registry(world.engine)
    begin = registry.history("small")[0].time_us
    second = add(world)
    registry.promote("small", second, actor="ann", reason="better", time_us=begin + 100)
    registry.rollback("small", actor="bob", reason="worse", time_us=begin + 200)
    served = {at: registry.at("small", begin + at) for at in (-1, 0, 99, 100, 199, 200)}
    names = {at: version.version if version else None for at, version in served.items()}
    assert names == {-1: None, 0: "v1", 99: "v1", 100: "v2", 199: "v2", 200: "v1"}
    assert [(e.previous, e.version, e.action) for e in registry.history("small")] == [
        (None, "v1", "promoted"),
        ("v1", "v2", "promoted"),
        ("v2", "v1", "rolled-back"),
    ]


def test_a_rollback_revokes_the_bad_version(world: World) -> None:
    registry = Registry(world.engine)
    second = add(world)
    registry.promote("small", second, actor="ann", reason="better", time_us=1)
    registry.rollback("small", actor="bob", reason="it lied", time_us=2)
    assert registry.get("small", second).approval == "revoked"
    with pytest.raises(ApprovalRevokedError, match="it lied"):
        registry.promote("small", second, actor="ann", reason="again", time_us=3)
    event = registry.promote("small", second, actor="ann", reason="really", time_us=3, override=True)
    assert event.evidence == {"override": True}


def test_a_rolled_back_version_is_never_gone_back_to(world: World) -> None:
    registry = Registry(world.engine)
    second, third = add(world), add(world)
    registry.promote("small", second, actor="a", reason="r", time_us=1)
    registry.promote("small", third, actor="a", reason="r", time_us=2)
    assert registry.rollback("small", actor="a", reason="r", time_us=3).version == second
    assert registry.rollback("small", actor="a", reason="r", time_us=4).version == "v1"
    with pytest.raises(UsageError, match="no earlier approved version"):
        registry.rollback("small", actor="a", reason="r", time_us=5)


def test_every_move_is_told_on_the_models_topic_in_the_same_transaction(world: World) -> None:
    with write(world.engine) as connection:
        before = len(pending(connection))
    version = add(world)
    Registry(world.engine).promote("small", version, actor="ann", reason="better", time_us=7)
    with read(world.engine) as connection:
        rows = pending(connection)[before:]
    assert [(row.noun, row.key) for row in rows] == [("models", "small")]
    record = rows[0].record
    assert (record["version"], record["previous"], record["time"]) == (version, "v1", 7)
    assert record["artifact_sha256"] == Registry(world.engine).get("small", version).artifact_sha256
    fields = {field["name"] for field in _envelope("models")["fields"]}
    assert record.keys() == fields


def _envelope(noun: str) -> dict[str, list[dict[str, str]]]:
    from schemas.events import envelope

    return envelope(noun)


def test_a_move_that_was_prepared_for_another_champion_is_refused(world: World) -> None:
    version = add(world)
    with pytest.raises(AliasMovedError, match="is v1 by now"), write(world.engine) as connection:
        move_alias(connection, "small", version, actor="a", reason="r", evidence={}, time_us=1, expected="v9")
    assert Registry(world.engine).resolve("small").version == "v1"  # type: ignore[union-attr]


def test_unknown_versions_and_aliases_are_refused(world: World) -> None:
    registry = Registry(world.engine)
    with pytest.raises(UnknownVersionError):
        registry.promote("small", "v9", actor="a", reason="r", time_us=1)
    with pytest.raises(UsageError, match="not an alias"):
        registry.promote("small", "v1", actor="a", reason="r", time_us=1, alias="best")
    with pytest.raises(UsageError, match="no champion"):
        registry.rollback("other", actor="a", reason="r", time_us=1)
    assert registry.resolve("other") is None


def test_a_line_of_the_ledger_needs_a_registered_version(world: World) -> None:
    from retrain.tables import alias_event

    row: dict[str, Any] = {
        "event_id": "e", "model": "small", "alias": "champion", "version": "v77", "previous": None,
        "action": "promoted", "actor": "a", "reason": "r", "evidence": {}, "time_us": 1,
    }  # fmt: skip
    with pytest.raises(sa.exc.IntegrityError), write(world.engine) as connection:
        connection.execute(sa.insert(alias_event).values(row))
