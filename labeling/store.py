"""The labeling store of one model: items in, one person at a time on each, decisions out as events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from labeling import events, leases, projection, proposals, queries
from labeling.decisions import Decision, Decisions, Undone
from labeling.errors import InvalidDecisionError, NotOwnerError, StaleLeaseError, UnknownItemError
from labeling.estimate import Estimate, hajek, selected_predictions
from labeling.events import LabelEvent
from labeling.extent import Cause, describe
from labeling.ingest import Ingest, IngestCounts, Prepared
from labeling.items import NewItem, Position, Protector, clean_text, split_id
from labeling.leases import Claim, Filters
from labeling.policy import LabelingPolicy
from labeling.projection import Projection, Proposal
from labeling.queries import QueueStats
from labeling.sql import chunks, serialize, upsert
from labeling.tables import incident, item, reviewer
from schemas.contract import Contract
from schemas.database import read, write
from schemas.errors import UsageError
from schemas.times import SECOND_US, now_us

INGEST_BATCH = 100
"""Items per transaction: some 5 ms, and up to ten times that beside a busy plane, which is how long an alert or the key
of a reviewer may wait on SQLite. More at once would cost a fifth less."""
REVIEWER_CHARS_MAX = 128
ANSWER_CHARS_MAX = 256
CLAIMS_PER_LEASE_CHECK = 50
"""Claims between two looks at how long decisions take."""


class LabelStore:
    """All that people and the plane do with one model's review queue.

    Parameters
    ----------
    engine
        From :func:`schemas.database.open_database`.
    model
        The model whose queue it is; each has its own chain of events.
    policy
        The model's ``[models.NAME.labeling]``.
    clock
        Microseconds since 1970 UTC; leases and events take their time from it.
    contract
        The model's contract: labels, sensitive fields, and which input the truth feed reports too.
    """

    def __init__(
        self,
        engine: sa.Engine,
        model: str,
        policy: LabelingPolicy | None = None,
        *,
        clock: Callable[[], int] = now_us,
        contract: Contract | None = None,
    ) -> None:
        self.engine = engine
        self.model = model
        self.policy = policy or LabelingPolicy()
        self.clock = clock
        self.contract = contract
        self._pseudonyms: dict[str, str] = {}
        self._lease_s = self.policy.lease_s
        self._claims = 0

    # ---- items

    def ingest(self, items: Sequence[NewItem]) -> IngestCounts:
        """Add items; those already here are counted, not added again. May be repeated with the same items."""
        total, protector = IngestCounts(), Protector(self.policy, self.contract)
        for part in chunks(list(items), INGEST_BATCH):
            ready = [Prepared.of(new, protector, self.contract) for new in part]
            with write(self.engine) as connection:
                total += Ingest(connection, self.model, self.policy, self.clock()).run(ready)
        return total

    def find(self, item_id: str) -> int:
        """Database id of an item named ``PREDICTION/RULE``.

        Raises
        ------
        UnknownItemError
            If there is none.
        """
        prediction_id, rule = split_id(item_id)
        with read(self.engine) as connection:
            number = connection.execute(
                sa.select(item.c.id).where(
                    item.c.model == self.model, item.c.prediction_id == prediction_id, item.c.rule == rule
                )
            ).scalar_one_or_none()
        if number is None:
            raise UnknownItemError(f"There is no item '{item_id}' of '{self.model}'.")
        return int(number)

    def require(self, item_id: str, n: int) -> None:
        """Ask for ``n`` answers to an item; never fewer than were asked for before."""
        number = self.find(item_id)
        with write(self.engine) as connection:
            events.lock_chain(connection, self.model)
            connection.execute(sa.update(item).where(item.c.id == number, item.c.required_n < n).values(required_n=n))
            projection.reproject_item(connection, self.model, number)

    # ---- reviewers and leases

    def pseudonym(self, name: str) -> str:
        """The name that stands in events, leases and exports; the same for the same person."""
        if name not in self._pseudonyms:
            if not 0 < len(name) <= REVIEWER_CHARS_MAX or "\x00" in name:
                raise UsageError("A reviewer's name has 1 to 128 characters.")
            with write(self.engine) as connection:
                serialize(connection, "reviewers")
                query = sa.select(reviewer.c.pseudonym).where(reviewer.c.name == name)
                found = connection.execute(query).scalar_one_or_none()
                if found is None:
                    count = connection.execute(sa.select(sa.func.count()).select_from(reviewer)).scalar_one()
                    found = f"r{count + 1}"
                    row = {"name": name, "pseudonym": found, "created_us": self.clock()}
                    connection.execute(sa.insert(reviewer).values(**row))
            self._pseudonyms[name] = str(found)
        return self._pseudonyms[name]

    def forget_reviewer(self, name: str) -> None:
        """Forget who a pseudonym was; what the person decided stays."""
        pseudonym = self.pseudonym(name)
        with write(self.engine) as connection:
            connection.execute(sa.update(reviewer).where(reviewer.c.name == name).values(name=f"\x01{pseudonym}"))
        del self._pseudonyms[name]

    def next(self, reviewer_name: str, filters: Filters | None = None) -> Claim | None:
        """Lease the next item to a reviewer; None if nothing is left for this one."""
        holder = self.pseudonym(reviewer_name)
        claim = self._claim_next(holder, filters or Filters(), is_waiting=False)
        if claim is None and self.engine.dialect.name == "postgresql":
            claim = self._claim_next(holder, filters or Filters(), is_waiting=True)
        return claim

    def _claim_next(self, holder: str, filters: Filters, *, is_waiting: bool) -> Claim | None:
        with write(self.engine) as connection:
            if self._claims % CLAIMS_PER_LEASE_CHECK == 0:
                self._lease_s = leases.lease_seconds(connection, self.model, self.policy)
            self._claims += 1
            every = self.policy.oldest_every
            return leases.claim_next(
                connection,
                self.model,
                holder,
                self.clock(),
                self._lease_s,
                filters,
                is_oldest_first=events.head_seq(connection, self.model) % every == every - 1,
                is_waiting=is_waiting,
            )

    def claim(self, reviewer_name: str, item_id: str) -> Claim:
        """Lease one particular item.

        Raises
        ------
        ItemNotOpenError
            If it cannot be taken now.
        """
        number, holder = self.find(item_id), self.pseudonym(reviewer_name)
        with write(self.engine) as connection:
            return leases.claim_item(connection, number, holder, self.clock(), self._lease_s)

    def heartbeat(self, token: str) -> int:
        """Keep a lease; returns its new end.

        Raises
        ------
        StaleLeaseError
            If it is lost.
        """
        with write(self.engine) as connection:
            row = leases.held(connection, self.model, token)
            until_us = self.clock() + self._lease_s * SECOND_US
            leases.extend(connection, row.id, until_us)
        return max(until_us, int(row.lease_until_us or 0))

    def release(self, token: str) -> bool:
        """Give an item back undecided; False if the lease was lost already."""
        with write(self.engine) as connection:
            try:
                row = leases.held(connection, self.model, token)
            except StaleLeaseError:
                return False
            leases.drop(connection, row.id)
        return True

    # ---- decisions

    def submit(
        self,
        token: str,
        *,
        answer: str | None = None,
        verdict: str | None = None,
        note: str = "",
        feature: str | None = None,
        seconds: float | None = None,
        is_blind: bool = False,
    ) -> Decision:
        """Decide on a leased item with a label, a verdict, or both.

        Raises
        ------
        StaleLeaseError
            If the token is stale; the decision is kept (:meth:`kept`).
        AlreadyLabeledError
            If this reviewer's decision on the item already stands.
        InvalidDecisionError
            If the label or the verdict does not exist.
        """
        self._check(answer, verdict)
        if feature is not None and self.contract is not None and feature not in self.contract.feature_names:
            raise InvalidDecisionError(f"'{feature}' is not a feature of the contract.")
        body = {"answer": answer, "verdict": verdict, "reason": clean_text(note), "feature": feature}
        return self._decide(events.SUBMITTED, token, body, seconds, is_blind)

    def skip(self, token: str, reason: str = "", *, seconds: float | None = None) -> Decision:
        """Leave an item to somebody else."""
        return self._decide(events.SKIPPED, token, {"reason": clean_text(reason)}, seconds, False)

    def flag(self, token: str, reason: str = "", *, seconds: float | None = None) -> Decision:
        """Hand an item to an adjudicator."""
        return self._decide(events.FLAGGED, token, {"reason": clean_text(reason)}, seconds, False)

    def labels(self) -> tuple[str, ...]:
        """The labels that an answer may have; empty: any."""
        return self.contract.target.labels if self.contract else self.policy.labels

    def _check(self, answer: str | None, verdict: str | None) -> None:
        if answer is None and verdict is None:
            raise InvalidDecisionError("A decision needs a label or a verdict.")
        if verdict is not None and verdict not in proposals.VERDICTS:
            raise InvalidDecisionError(f"'{verdict}' is not a verdict ({', '.join(proposals.VERDICTS)}).")
        if answer is not None and (not 0 < len(answer) <= ANSWER_CHARS_MAX or "\x00" in answer):
            raise InvalidDecisionError("A label has 1 to 256 characters.")
        if answer is not None and self.labels() and answer not in self.labels():
            raise InvalidDecisionError(f"'{answer}' is not a label ({', '.join(self.labels())}).")

    def _decide(self, kind: str, token: str, given: dict[str, Any], seconds: float | None, is_blind: bool) -> Decision:
        moment = self.clock()
        try:
            with write(self.engine) as connection:
                return self._decisions(connection, moment).decide(kind, token, given, seconds, is_blind)
        except StaleLeaseError:
            with write(self.engine) as connection:
                self._decisions(connection, moment).keep(token, kind, given)
            raise

    def undo(self, reviewer_name: str) -> Undone | None:
        """Take the reviewer's last standing decision back; None if the last ten are taken back already.

        The item comes back leased to the reviewer, so that the right key can follow at once.
        """
        actor = self.pseudonym(reviewer_name)
        with write(self.engine) as connection:
            return self._decisions(connection, self.clock()).undo(actor, self._lease_s)

    def _decisions(self, connection: sa.Connection, moment: int) -> Decisions:
        return Decisions(connection, self.model, self.policy, self.contract, moment)

    # ---- proposals and incidents

    def accept(self, proposal_id: str, owner: str, reason: str = "", *, from_us: int | None = None) -> Proposal:
        """Accept a proposal; ``from_us`` corrects where it begins.

        Raises
        ------
        NotOwnerError
            If the policy names owners and this is none of them.
        ProposalClosedError
            If it is decided already.
        """
        return self._rule(events.PROPOSAL_ACCEPTED, proposal_id, owner, reason, from_us)

    def refuse(self, proposal_id: str, owner: str, reason: str = "") -> Proposal:
        """Refuse a proposal; it comes back only when as many fresh verdicts say the same."""
        return self._rule(events.PROPOSAL_REFUSED, proposal_id, owner, reason, None)

    def _rule(self, kind: str, proposal_id: str, owner: str, reason: str, from_us: int | None) -> Proposal:
        if self.policy.owners and owner not in self.policy.owners:
            raise NotOwnerError
        actor = self.pseudonym(owner)
        with write(self.engine) as connection:
            events.lock_chain(connection, self.model)
            made = proposals.load(connection, self.model, proposal_id)
            detail = made.detail
            seqs = proposals.supporters(connection, self.model, proposal_id)
            if made.state == "open" and seqs:
                cause = Cause(made.cause, detail["feature"], detail["incident_id"])
                detail = describe(connection, self.model, self.policy, self.contract, cause, made.verdict, seqs)
            if from_us is not None:
                detail = detail | {"from_us": from_us, "position": None}
            return proposals.close(connection, made, kind, actor, self.clock(), reason, detail)

    def note_incident(
        self,
        incident_id: str,
        from_us: int,
        *,
        feature: str | None = None,
        message: str = "",
        position: Position | None = None,
        until_us: int | None = None,
    ) -> None:
        """Tell the store of an alert's incident, or that it ended (``until_us``); may be repeated.

        Verdicts on items within it are counted as being about it, and a proposal begins where it begins.
        """
        values = {
            "feature": feature,
            "from_us": from_us,
            "until_us": until_us,
            "message": message,
            "position": vars(position) if position else {},
        }
        with write(self.engine) as connection:
            statement = upsert(connection, incident).values(model=self.model, incident_id=incident_id, **values)
            connection.execute(statement.on_conflict_do_update(index_elements=["model", "incident_id"], set_=values))

    # ---- the events

    def verify_chain(self) -> int:
        """Check the chain of label events; the number of events.

        Raises
        ------
        ChainBrokenError
            If an event was changed, removed or added.
        """
        with read(self.engine) as connection:
            return events.verify(connection, self.model)

    def rebuild(self) -> int:
        """Write the current state anew from the events; the number of standing decisions."""
        with write(self.engine) as connection:
            return len(projection.rebuild(connection, self.model).annotations())

    def labels_as_of(self, time_us: int | None = None) -> Projection:
        """Decisions, proposals and their support as they stood at a time (None: now)."""
        with read(self.engine) as connection:
            return projection.fold(events.scan(connection, self.model, as_of_us=time_us))

    def events(self, after_seq: int = 0, limit: int = 1_000) -> list[LabelEvent]:
        """The chain's events after ``after_seq``, in order."""
        with read(self.engine) as connection:
            return events.page(connection, self.model, after_seq, limit)

    # ---- reading

    def stats(self) -> QueueStats:
        """Figures of the queue for ``flywheel status``."""
        with read(self.engine) as connection:
            return queries.stats(connection, self.model, self.clock())

    def items(self, *, state: str | None = None, rule: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Items in the queue's order, without their payloads."""
        with read(self.engine) as connection:
            return queries.items(connection, self.model, state=state, rule=rule, limit=limit)

    def export(self) -> Iterator[dict[str, Any]]:
        """Every standing label with its provenance; reviewers by pseudonym."""
        with read(self.engine) as connection:
            yield from queries.export(connection, self.model)

    def proposals(self, state: str | None = None) -> list[Proposal]:
        """Proposals, newest first."""
        with read(self.engine) as connection:
            return [Proposal(**row) for row in queries.proposals(connection, self.model, state)]

    def kept(self, reviewer_name: str | None = None) -> list[dict[str, Any]]:
        """Decisions that came with a stale token, oldest first."""
        with read(self.engine) as connection:
            return queries.kept(connection, self.model, reviewer_name)

    def quality(self, version: str | None = None) -> Estimate:
        """Share of right predictions, from the reviewed ones, weighted by how they came to be reviewed."""
        with read(self.engine) as connection:
            return hajek(selected_predictions(connection, self.model, version))
