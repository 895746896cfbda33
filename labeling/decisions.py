"""One decision of a person, or its undoing, in one transaction: event, projection, proposal, outbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from labeling import events, leases, projection, proposals
from labeling.errors import AlreadyLabeledError, ItemNotOpenError
from labeling.events import LabelEvent
from labeling.leases import Claim
from labeling.policy import LabelingPolicy
from labeling.projection import Proposal
from labeling.tables import annotation, item, kept_decision, label_event, proposal_support
from schemas.contract import Contract
from schemas.times import SECOND_US


@dataclass(frozen=True)
class Decision:
    """What a decision did: its event, the item's new state, and the proposal that it completed, if any."""

    event: LabelEvent
    state: str
    proposal: Proposal | None = None


@dataclass(frozen=True)
class Undone:
    """What was taken back, the item leased to the reviewer again (None if it cannot be), a proposal withdrawn by it."""

    event: LabelEvent
    reverted: LabelEvent
    claim: Claim | None
    withdrawn: Proposal | None


@dataclass(frozen=True)
class Decisions:
    """The decisions of one write transaction."""

    connection: sa.Connection
    model: str
    policy: LabelingPolicy
    contract: Contract | None
    now_us: int

    def decide(self, kind: str, token: str, given: dict[str, Any], seconds: float | None, is_blind: bool) -> Decision:
        """Append one decision on a leased item."""
        events.lock_chain(self.connection, self.model)
        row = leases.held(self.connection, self.model, token)
        actor = str(row.lease_holder)
        self._refuse_second(row.id, actor, kind)
        body = _circumstances(row) | given
        body |= {
            "token": token,
            "is_blind": is_blind,
            "is_adjudication": row.state == "flagged" and kind == events.SUBMITTED,
            "seconds": None if seconds is None else round(seconds, 3),
        }
        verdict = given.get("verdict")
        cause = None
        if verdict is not None:
            cause = proposals.cause_of(self.connection, row, verdict, given.get("feature"))
            body |= {"cause": cause.key, "feature": cause.feature, "incident_id": cause.incident_id}
            gap_us = self.policy.run_gap_s * SECOND_US
            body["proposal_id"] = proposals.supported_by(
                self.connection, self.model, cause, verdict, row.event_time_us, gap_us
            )
        event = events.append(self.connection, self.model, kind, actor, self.now_us, body, row.id)
        leases.drop(self.connection, row.id)
        state = projection.reproject_item(self.connection, self.model, row.id)
        if cause is None or verdict is None:
            return Decision(event, state.state)
        if body["proposal_id"]:
            support = {"model": self.model, "seq": event.seq, "proposal_id": body["proposal_id"]}
            self.connection.execute(sa.insert(proposal_support).values(**support))
            return Decision(event, state.state)
        made = proposals.propose(self.connection, self.model, self.policy, self.contract, cause, verdict, self.now_us)
        return Decision(event, state.state, made)

    def _refuse_second(self, number: int, actor: str, kind: str) -> None:
        stands = self.connection.execute(
            sa.select(annotation.c.kind).where(annotation.c.item == number, annotation.c.reviewer == actor)
        ).scalar_one_or_none()
        if stands == events.SUBMITTED or (stands == kind and kind != events.SKIPPED):
            raise AlreadyLabeledError

    def keep(self, token: str, kind: str, given: dict[str, Any]) -> None:
        """Store a refused decision: what a person wrote is not thrown away."""
        number, _, holder = leases.parse_token(token)
        values = {"model": self.model, "reviewer": holder, "item": number, "time_us": self.now_us}
        body = {"kind": kind, "token": token, **given}
        self.connection.execute(sa.insert(kept_decision).values(body=body, **values))

    def undo(self, actor: str, lease_s: int) -> Undone | None:
        """Take the actor's last standing decision back, by an event of its own."""
        events.lock_chain(self.connection, self.model)
        reverted = self._last_standing(actor)
        if reverted is None:
            return None
        assert reverted.item is not None
        row = self.connection.execute(sa.select(item).where(item.c.id == reverted.item)).one()
        body = _circumstances(row) | {
            "reverts": reverted.event_id,
            "reverts_seq": reverted.seq,
            "reverted_kind": reverted.kind,
        }
        event = events.append(self.connection, self.model, events.UNDONE, actor, self.now_us, body, row.id)
        state = projection.reproject_item(self.connection, self.model, row.id)
        withdrawn = proposals.take_back_support(self.connection, self.model, self.policy, reverted.seq, self.now_us)
        claim = None
        if state.state != "done":
            try:
                claim = leases.claim_item(self.connection, row.id, actor, self.now_us, lease_s)
            except ItemNotOpenError:
                claim = None
        return Undone(event, reverted, claim, withdrawn)

    def _last_standing(self, actor: str) -> LabelEvent | None:
        """The newest of the actor's last decisions (ten by default) that is not taken back yet."""
        mine = sa.select(label_event).where(label_event.c.model == self.model, label_event.c.actor == actor)
        newest = self.connection.execute(
            mine.where(label_event.c.kind.in_(events.DECISIONS))
            .order_by(label_event.c.seq.desc())
            .limit(self.policy.undo_depth)
        ).all()
        if not newest:
            return None
        undone = self.connection.execute(
            mine.where(label_event.c.kind == events.UNDONE, label_event.c.seq > newest[-1].seq)
        ).all()
        taken_back = {row.body["reverts_seq"] for row in undone}
        return next((events.from_row(row) for row in newest if row.seq not in taken_back), None)


def _circumstances(row: sa.Row[Any]) -> dict[str, Any]:
    """What every event on an item says of it, and what the reviewer saw."""
    payload = row.payload
    return {
        "prediction_id": row.prediction_id,
        "rule": row.rule,
        "event_time_us": row.event_time_us,
        "selection_probability": row.selection_probability,
        "position": payload["position"],
        "saw": {name: payload[name] for name in ("version", "label", "score", "truth")},
        "input_hash": row.input_hash,
    }
