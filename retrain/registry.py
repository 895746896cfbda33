"""Versions and the ledger of what serves: aliases move by appended events only.

The current alias is a projection of the ledger, so "what served at T" is a query and a rollback is an event like any
other. Each move puts a ``models`` event into the outbox in the same transaction.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from retrain.errors import AliasMovedError, ApprovalRevokedError, UnknownVersionError
from retrain.tables import alias_event, model_version
from schemas.database import read, write
from schemas.database.outbox import enqueue
from schemas.errors import UsageError

CHAMPION = "champion"
ALIASES = ("champion", "challenger", "shadow", "canary")
APPROVED, REVOKED = "approved", "revoked"


@dataclass(frozen=True)
class Version:
    """One registered version; the fields are the columns of ``model_version``."""

    model: str
    version: str
    number: int
    artifact_sha256: str
    path: str
    dataset: str | None
    base_table: str | None
    base_sha256: str | None
    parent: str | None
    run_id: str | None
    trainer: str
    recipe: dict[str, Any]
    columns: dict[str, Any]
    constants: dict[str, float]
    gate: dict[str, Any]
    metrics: dict[str, Any]
    reference: dict[str, Any]
    trained_until_us: int
    approval: str
    approval_reason: str
    created_us: int

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Changes of meaning that its version column tells apart (event times)."""
        return tuple(self.columns.get("boundaries", ()))


@dataclass(frozen=True)
class AliasEvent:
    """One line of the ledger."""

    event_id: str
    model: str
    alias: str
    version: str
    previous: str | None
    action: str
    actor: str
    reason: str
    evidence: dict[str, Any]
    time_us: int


def version_of(row: sa.Row[Any]) -> Version:
    """A version from its row."""
    return Version(**row._asdict())


def next_number(connection: sa.Connection, model: str) -> int:
    """Number of the version to be registered next; versions are called ``v1``, ``v2`` and so on."""
    query = sa.select(sa.func.max(model_version.c.number)).where(model_version.c.model == model)
    return int(connection.execute(query).scalar() or 0) + 1


def add_version(connection: sa.Connection, version: Version) -> None:
    """Register a version inside the caller's transaction."""
    connection.execute(sa.insert(model_version).values(**vars(version)))


def find_version(connection: sa.Connection, model: str, version: str) -> Version:
    """A version by name.

    Raises
    ------
    UnknownVersionError
        If there is none.
    """
    query = sa.select(model_version).where(model_version.c.model == model, model_version.c.version == version)
    row = connection.execute(query).first()
    if row is None:
        raise UnknownVersionError(f"The model '{model}' has no version '{version}'.")
    return version_of(row)


def current(connection: sa.Connection, model: str, alias: str = CHAMPION, at_us: int | None = None) -> str | None:
    """The version that an alias names (at an event time), or None."""
    query = sa.select(alias_event.c.version).where(alias_event.c.model == model, alias_event.c.alias == alias)
    if at_us is not None:
        query = query.where(alias_event.c.time_us <= at_us)
    found = connection.execute(query.order_by(*_newest(at_us)).limit(1)).scalar()
    return None if found is None else str(found)


def _newest(at_us: int | None) -> tuple[sa.UnaryExpression[Any], ...]:
    """Now: the last line counts. In the past: the last line by time, then by place."""
    by_place = alias_event.c.id.desc()
    return (by_place,) if at_us is None else (alias_event.c.time_us.desc(), by_place)


def move_alias(
    connection: sa.Connection,
    model: str,
    version: str,
    *,
    alias: str = CHAMPION,
    action: str = "promoted",
    actor: str,
    reason: str,
    evidence: dict[str, Any],
    time_us: int,
    expected: str | bool | None = True,
) -> AliasEvent:
    """Append one line to the ledger and tell the serving processes, inside the caller's transaction.

    Parameters
    ----------
    expected
        The version that the alias must still name (None: none yet); True: whatever it names.

    Raises
    ------
    AliasMovedError
        If it names another one by now.
    """
    if alias not in ALIASES:
        raise UsageError(f"'{alias}' is not an alias.", action=f"Use one of {', '.join(ALIASES)}.")
    found = find_version(connection, model, version)
    previous = current(connection, model, alias)
    if expected is not True and previous != expected:
        raise AliasMovedError(f"'{alias}' of '{model}' is {previous or 'nothing'} by now, not {expected or 'nothing'}.")
    event = AliasEvent(uuid.uuid4().hex, model, alias, version, previous, action, actor, reason, evidence, time_us)
    connection.execute(sa.insert(alias_event).values(**vars(event)))
    enqueue(connection, "models", model, models_record(event, found))
    return event


def models_record(event: AliasEvent, version: Version) -> dict[str, Any]:
    """The event of the ``models`` topic: all that a serving process needs to load the version."""
    return {
        "event_id": event.event_id,
        "model": event.model,
        "alias": event.alias,
        "version": event.version,
        "previous": event.previous,
        "action": event.action,
        "actor": event.actor,
        "reason": event.reason,
        "evidence": json.dumps(event.evidence, sort_keys=True),
        "time": event.time_us,
        "artifact": version.path,
        "artifact_sha256": version.artifact_sha256,
        "constants": json.dumps(version.constants, sort_keys=True),
    }


class Registry:
    """Versions, aliases and their history in one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def versions(self, model: str | None = None) -> list[Version]:
        """All versions, oldest first."""
        query = sa.select(model_version).order_by(model_version.c.model, model_version.c.number)
        if model is not None:
            query = query.where(model_version.c.model == model)
        with read(self.engine) as connection:
            return [version_of(row) for row in connection.execute(query)]

    def get(self, model: str, version: str) -> Version:
        """One version; raises UnknownVersionError."""
        with read(self.engine) as connection:
            return find_version(connection, model, version)

    def resolve(self, model: str, alias: str = CHAMPION) -> Version | None:
        """The version that an alias names now."""
        with read(self.engine) as connection:
            name = current(connection, model, alias)
            return None if name is None else find_version(connection, model, name)

    def at(self, model: str, time_us: int, alias: str = CHAMPION) -> Version | None:
        """The version that an alias named at a time: what served then."""
        with read(self.engine) as connection:
            name = current(connection, model, alias, time_us)
            return None if name is None else find_version(connection, model, name)

    def history(self, model: str) -> list[AliasEvent]:
        """The ledger, oldest first."""
        columns = [column for column in alias_event.c if column.name != "id"]
        query = sa.select(*columns).where(alias_event.c.model == model).order_by(alias_event.c.id)
        with read(self.engine) as connection:
            return [AliasEvent(**row._asdict()) for row in connection.execute(query)]

    def promote(
        self,
        model: str,
        version: str,
        *,
        actor: str,
        reason: str,
        time_us: int,
        alias: str = CHAMPION,
        override: bool = False,
        evidence: dict[str, Any] | None = None,
    ) -> AliasEvent:
        """Move an alias by hand.

        Raises
        ------
        ApprovalRevokedError
            If a rollback revoked the version and ``override`` is not given.
        """
        with write(self.engine) as connection:
            found = find_version(connection, model, version)
            if found.approval == REVOKED and not override:
                raise ApprovalRevokedError(f"'{version}' of '{model}' was revoked: {found.approval_reason}")
            told = (evidence or {}) | ({"override": True} if override else {})
            return move_alias(
                connection, model, version, alias=alias, actor=actor, reason=reason, evidence=told, time_us=time_us
            )

    def rollback(self, model: str, *, actor: str, reason: str, time_us: int, to: str | None = None) -> AliasEvent:
        """Bring back an earlier champion and revoke the approval of the one that serves.

        Parameters
        ----------
        to
            Which; default: the newest earlier champion whose approval stands.

        Raises
        ------
        UsageError
            If there is none to go back to.
        """
        with write(self.engine) as connection:
            bad = current(connection, model)
            if bad is None:
                raise UsageError(f"The model '{model}' has no champion to roll back.")
            good = to or _earlier(connection, model, bad)
            if good is None or good == bad:
                raise UsageError(f"The model '{model}' has no earlier approved version to go back to.")
            if find_version(connection, model, good).approval == REVOKED:
                raise ApprovalRevokedError(f"'{good}' of '{model}' was revoked itself.")
            connection.execute(
                sa.update(model_version)
                .where(model_version.c.model == model, model_version.c.version == bad)
                .values(approval=REVOKED, approval_reason=f"rolled back: {reason}")
            )
            told = {"revoked": bad}
            return move_alias(
                connection,
                model,
                good,
                action="rolled-back",
                actor=actor,
                reason=reason,
                evidence=told,
                time_us=time_us,
                expected=bad,
            )


def _earlier(connection: sa.Connection, model: str, bad: str) -> str | None:
    """The champion before ``bad``, skipping versions whose approval was revoked."""
    query = (
        sa.select(alias_event.c.version)
        .join(
            model_version,
            sa.and_(model_version.c.model == alias_event.c.model, model_version.c.version == alias_event.c.version),
        )
        .where(
            alias_event.c.model == model,
            alias_event.c.alias == CHAMPION,
            alias_event.c.version != bad,
            model_version.c.approval == APPROVED,
        )
        .order_by(alias_event.c.id.desc())
    )
    found: Sequence[Any] = connection.execute(query.limit(1)).scalars().all()
    return str(found[0]) if found else None
