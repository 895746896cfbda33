"""Adding items: idempotent, in batches, each with the reason why it is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from labeling.evidence import suspect
from labeling.items import NewItem, Protector, hashes, payload, urgency
from labeling.policy import LabelingPolicy
from labeling.sql import chunks, serialize, upsert
from labeling.tables import item, item_cluster, item_occurrence
from schemas.contract import Contract
from schemas.database import Encoded

DUPLICATE_BONUS = 0.25
"""Priority of one further complaint: four of them weigh as much as one step of severity."""
SKIP_MALUS = 1.0
"""Priority lost by a skip: the item goes behind everything of the same severity."""


@dataclass(frozen=True)
class IngestCounts:
    """What became of a batch.

    ``added`` items are new and open; ``merged`` are new but ask a question that another item already asks; ``repeated``
    were here and got a further complaint; ``redelivered`` were here and nothing changed.
    """

    added: int = 0
    merged: int = 0
    repeated: int = 0
    redelivered: int = 0

    def __add__(self, other: IngestCounts) -> IngestCounts:
        return IngestCounts(
            self.added + other.added,
            self.merged + other.merged,
            self.repeated + other.repeated,
            self.redelivered + other.redelivered,
        )


def rank(urgency_: Any, duplicates: Any, skips: Any) -> Any:
    """Sort key of the queue, lowest first; of numbers or of columns, so that both give the same bits."""
    return -(urgency_ + DUPLICATE_BONUS * duplicates - SKIP_MALUS * skips)


@dataclass(frozen=True)
class Prepared:
    """An item, and what its row says that does not depend on the rows that are there.

    Most of the work, done before the transaction: SQLite has one writer, and alerts wait for it.
    """

    new: NewItem
    payload: Encoded
    suspect: str | None
    subject_hash: str | None
    input_hash: str
    task_hash: str

    @classmethod
    def of(cls, new: NewItem, protector: Protector, contract: Contract | None) -> Prepared:
        stored = payload(new, protector)
        suspected = suspect(stored["features"], stored["facts"], contract)
        return cls(new, Encoded.of(stored), suspected, protector.subject(new.subject), *hashes(new, protector.key))


class Ingest:
    """One batch in one transaction; made anew for every batch."""

    def __init__(self, connection: sa.Connection, model: str, policy: LabelingPolicy, now_us: int) -> None:
        self.connection = connection
        self.model = model
        self.policy = policy
        self.now_us = now_us
        self._grown: dict[str, int] = {}

    def run(self, items: Sequence[Prepared]) -> IngestCounts:
        """Insert what is new, count what is not."""
        serialize(self.connection, "ingest")
        known = self._known([each.new for each in items])
        fresh: dict[tuple[str, str], Prepared] = {}
        again: list[NewItem] = []
        for each in items:
            name = (each.new.prediction_id, each.new.rule)
            if name in known or name in fresh:
                again.append(each.new)
            else:
                fresh[name] = each
        ids, merged = self._insert(list(fresh.values()))
        known.update(ids)
        repeated = self._repeat(again, known)
        self._store_sizes(self._grown)  # after the items, as a decision does: else the two could deadlock
        added = len(fresh) - merged
        return IngestCounts(added, merged, repeated, len(again) - repeated)

    def _known(self, items: Sequence[NewItem]) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        for part in chunks(sorted({new.prediction_id for new in items})):
            rows = self.connection.execute(
                sa.select(item.c.prediction_id, item.c.rule, item.c.id).where(
                    item.c.model == self.model, item.c.prediction_id.in_(part)
                )
            )
            found.update({(row.prediction_id, row.rule): row.id for row in rows})
        return found

    def _insert(self, fresh: list[Prepared]) -> tuple[dict[tuple[str, str], int], int]:
        """Ids of the inserted items, and how many of them ask what another one asks."""
        if not fresh:
            return {}, 0
        first_id = 1 + (self.connection.execute(sa.select(sa.func.max(item.c.id))).scalar() or 0)
        asked = self._asked([each.task_hash for each in fresh])
        sizes, unpredictable = self._clusters()
        rows = []
        occurrences = []
        duplicates: dict[int, int] = {}
        for number, each in enumerate(fresh, start=first_id):
            same_as = asked.setdefault(each.task_hash, number)
            row = self._row(each, sizes, unpredictable)
            row |= {"id": number, "same_as": None}
            if same_as != number:
                row |= {"same_as": same_as, "state": "duplicate"}
                duplicates[same_as] = duplicates.get(same_as, 0) + 1
            rows.append(row)
            occurrences.append({"item": number, "occurrence": each.new.occurrence})
        self.connection.execute(sa.insert(item), rows)
        self.connection.execute(sa.insert(item_occurrence), occurrences)
        self._add_duplicates(duplicates)
        self._grown = sizes
        names = {(row["prediction_id"], row["rule"]): row["id"] for row in rows}
        return names, sum(duplicates.values())

    def _row(self, each: Prepared, sizes: dict[str, int], unpredictable: dict[str, int]) -> dict[str, Any]:
        new = each.new
        cluster = f"{new.rule}|{each.suspect or '-'}"
        damping = 1.0 + unpredictable.get(cluster, 0) / self.policy.proposal_after
        priority = round(urgency(new, sizes.get(cluster, 0)) / damping, 6)
        sizes[cluster] = sizes.get(cluster, 0) + 1
        return {
            "model": self.model,
            "prediction_id": new.prediction_id,
            "rule": new.rule,
            "policy": new.policy,
            "selection_probability": new.selection_probability,
            "kind": new.kind,
            "required_n": self.policy.required_n,
            "event_time_us": new.event_time_us,
            "created_us": self.now_us,
            "cluster": cluster,
            "suspect": each.suspect,
            "subject_hash": each.subject_hash,
            "input_hash": each.input_hash,
            "task_hash": each.task_hash,
            "urgency": priority,
            "payload": each.payload,
            "duplicates": 0,
            "skips": 0,
            "rank": rank(priority, 0, 0),
            "state": "open",
            "lease_until_us": None,
            "lease_fence": 0,
        }

    def _asked(self, task_hashes: list[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for part in chunks(sorted(set(task_hashes))):
            rows = self.connection.execute(
                sa.select(item.c.task_hash, item.c.id).where(
                    item.c.model == self.model, item.c.task_hash.in_(part), item.c.same_as.is_(None)
                )
            )
            found.update({row.task_hash: row.id for row in rows})
        return found

    def _clusters(self) -> tuple[dict[str, int], dict[str, int]]:
        """Of every cluster its size, and how often people found that it could not have been predicted."""
        rows = self.connection.execute(sa.select(item_cluster).where(item_cluster.c.model == self.model)).all()
        return {row.cluster: row.size for row in rows}, {row.cluster: row.unpredictable for row in rows}

    def _store_sizes(self, sizes: dict[str, int]) -> None:
        if not sizes:
            return
        statement = upsert(self.connection, item_cluster)
        self.connection.execute(
            statement.on_conflict_do_update(
                index_elements=["model", "cluster"], set_={"size": statement.excluded.size}
            ),
            [
                {"model": self.model, "cluster": cluster, "size": size, "unpredictable": 0}
                for cluster, size in sizes.items()
            ],
        )

    def _repeat(self, again: list[NewItem], known: dict[tuple[str, str], int]) -> int:
        """Raise counter and priority of the items with an occurrence that was not seen yet."""
        wanted = {(known[new.prediction_id, new.rule], new.occurrence) for new in again}
        seen: set[tuple[int, str]] = set()
        for part in chunks(sorted({number for number, _ in wanted})):
            rows = self.connection.execute(sa.select(item_occurrence).where(item_occurrence.c.item.in_(part)))
            seen.update((row.item, row.occurrence) for row in rows)
        new_ones = sorted(wanted - seen)
        if not new_ones:
            return 0
        self.connection.execute(
            sa.insert(item_occurrence), [{"item": number, "occurrence": name} for number, name in new_ones]
        )
        more: dict[int, int] = {}
        for number, _ in new_ones:
            more[number] = more.get(number, 0) + 1
        self._add_duplicates(more)
        return len(new_ones)

    def _add_duplicates(self, more: dict[int, int]) -> None:
        if more:
            self.connection.execute(
                sa.update(item)
                .where(item.c.id == sa.bindparam("number"))
                .values(
                    duplicates=item.c.duplicates + sa.bindparam("more"),
                    rank=rank(item.c.urgency, item.c.duplicates + sa.bindparam("more"), item.c.skips),
                ),
                [{"number": number, "more": count} for number, count in sorted(more.items())],
            )
