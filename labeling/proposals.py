"""From equal verdicts to a proposal: what to do about a cause that several people saw.

A person says why one prediction was wrong; when enough have said the same of the same cause, the store proposes what
follows for all such rows. An owner decides; retraining reads the accepted proposals from the label events.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from labeling import events
from labeling.errors import ProposalClosedError, UnknownProposalError
from labeling.evidence import suspect_feature
from labeling.extent import Cause, describe
from labeling.items import clean_text, digest
from labeling.policy import LabelingPolicy
from labeling.projection import PROPOSAL_STATES, Proposal
from labeling.tables import annotation, incident, item, label_event, proposal, proposal_support
from schemas.contract import Contract

VERDICTS = ("input_broken", "meaning_changed", "world", "unpredictable", "truth_wrong")
SYSTEM = "flywheel"
"""Actor of the events that nobody decided: a proposal made, or withdrawn because its support was taken back."""


def kind_of(verdict: str, cause: Cause) -> str | None:
    """What so many equal verdicts suggest; None if nothing is to be done."""
    if verdict == "meaning_changed":
        return "new_contract_version"
    if verdict == "input_broken":
        return "contract_rule" if cause.feature else "exclude_range"
    if verdict == "world" and cause.incident_id:
        return "answer_incident"
    return None


def open_incident(connection: sa.Connection, model: str, event_time_us: int, feature: str | None) -> sa.Row[Any] | None:
    """The incident at an event time: of the feature, or of no single feature for None; the earliest."""
    query = (
        sa.select(incident)
        .where(
            incident.c.model == model,
            incident.c.from_us <= event_time_us,
            sa.or_(incident.c.until_us.is_(None), incident.c.until_us > event_time_us),
            incident.c.feature.is_(None) if feature is None else incident.c.feature == feature,
        )
        .order_by(incident.c.from_us, incident.c.incident_id)
        .limit(1)
    )
    return connection.execute(query).one_or_none()


def cause_of(connection: sa.Connection, row: sa.Row[Any], verdict: str, feature: str | None) -> Cause:
    """The cause that a verdict on an item speaks of.

    A broken or changed input is about the feature that disagrees (or the one that the reviewer names), the world about
    the open incident; everything else about the rule that picked the item.
    """
    if verdict in ("input_broken", "meaning_changed"):
        named = feature or suspect_feature(row.suspect)
        if named is not None:
            found = open_incident(connection, row.model, row.event_time_us, named)
            key = row.suspect if feature in (None, suspect_feature(row.suspect)) else feature
            return Cause(f"feature:{key}", named, found.incident_id if found else None)
    if verdict in ("input_broken", "meaning_changed", "world"):
        found = open_incident(connection, row.model, row.event_time_us, None)
        if found is not None:
            return Cause(f"incident:{found.incident_id}", None, found.incident_id)
    return Cause(f"rule:{row.rule}", None, None)


def supported_by(
    connection: sa.Connection, model: str, cause: Cause, verdict: str, event_time_us: int, gap_us: int
) -> str | None:
    """The open or accepted proposal that one more equal verdict belongs to."""
    rows = connection.execute(
        sa.select(proposal)
        .where(
            proposal.c.model == model,
            proposal.c.cause == cause.key,
            proposal.c.verdict == verdict,
            proposal.c.state.in_(("open", "accepted")),
        )
        .order_by(proposal.c.seq.desc())
    ).all()
    for row in rows:
        first, last = _span(connection, model, row.proposal_id)
        if min(first, row.detail["from_us"]) - gap_us <= event_time_us <= last + gap_us:
            return str(row.proposal_id)
    return None


def _span(connection: sa.Connection, model: str, proposal_id: str) -> tuple[int, int]:
    """Event times of the first and the last item behind a proposal."""
    query = (
        sa.select(sa.func.min(item.c.event_time_us), sa.func.max(item.c.event_time_us))
        .select_from(proposal_support)
        .join(
            label_event,
            sa.and_(label_event.c.model == proposal_support.c.model, label_event.c.seq == proposal_support.c.seq),
        )
        .join(item, item.c.id == label_event.c.item)
        .where(proposal_support.c.model == model, proposal_support.c.proposal_id == proposal_id)
    )
    first, last = connection.execute(query).one()
    return (first, last) if first is not None else (0, 0)


def unsupporting(connection: sa.Connection, model: str, cause: Cause, verdict: str) -> list[int]:
    """Sequence numbers of the equal verdicts that stand behind no proposal yet."""
    query = (
        sa.select(annotation.c.seq)
        .outerjoin(
            proposal_support,
            sa.and_(proposal_support.c.model == annotation.c.model, proposal_support.c.seq == annotation.c.seq),
        )
        .where(
            annotation.c.model == model,
            annotation.c.cause == cause.key,
            annotation.c.verdict == verdict,
            annotation.c.kind == events.SUBMITTED,
            proposal_support.c.seq.is_(None),
        )
        .order_by(annotation.c.seq)
    )
    return [int(seq) for seq in connection.execute(query).scalars()]


def propose(
    connection: sa.Connection,
    model: str,
    policy: LabelingPolicy,
    contract: Contract | None,
    cause: Cause,
    verdict: str,
    now_us: int,
) -> Proposal | None:
    """Make a proposal if enough equal verdicts stand behind none."""
    kind = kind_of(verdict, cause)
    if kind is None:
        return None
    seqs = unsupporting(connection, model, cause, verdict)
    if len(seqs) < policy.proposal_after:
        return None
    proposal_id = f"p{digest([model, events.head_seq(connection, model)])[:8]}"
    detail = describe(connection, model, policy, contract, cause, verdict, seqs)
    body = {
        "proposal_id": proposal_id,
        "proposal_kind": kind,
        "verdict": verdict,
        "cause": cause.key,
        "seqs": seqs,
        **detail,
    }
    event = events.append(connection, model, events.PROPOSAL_MADE, SYSTEM, now_us, body, None)
    made = Proposal(proposal_id, model, kind, verdict, cause.key, "open", event.seq, now_us, None, None, "", detail)
    connection.execute(sa.insert(proposal).values(**vars(made)))
    connection.execute(
        sa.insert(proposal_support), [{"model": model, "seq": s, "proposal_id": proposal_id} for s in seqs]
    )
    return made


def supporters(connection: sa.Connection, model: str, proposal_id: str) -> list[int]:
    """Sequence numbers of the verdicts behind a proposal."""
    query = (
        sa.select(proposal_support.c.seq)
        .where(proposal_support.c.model == model, proposal_support.c.proposal_id == proposal_id)
        .order_by(proposal_support.c.seq)
    )
    return [int(seq) for seq in connection.execute(query).scalars()]


def load(connection: sa.Connection, model: str, proposal_id: str) -> Proposal:
    """One proposal.

    Raises
    ------
    UnknownProposalError
        If there is none of that name.
    """
    query = sa.select(proposal).where(proposal.c.model == model, proposal.c.proposal_id == proposal_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise UnknownProposalError(f"There is no proposal '{proposal_id}' of '{model}'.")
    return Proposal(**row._asdict())


def close(
    connection: sa.Connection,
    made: Proposal,
    kind: str,
    actor: str,
    now_us: int,
    reason: str,
    detail: dict[str, Any],
) -> Proposal:
    """Accept, refuse or withdraw an open proposal, by an event that holds all of it.

    Raises
    ------
    ProposalClosedError
        If it is not open any more.
    """
    if made.state != "open":
        raise ProposalClosedError(f"The proposal '{made.proposal_id}' is {made.state}.")
    body = {
        "proposal_id": made.proposal_id,
        "proposal_kind": made.kind,
        "verdict": made.verdict,
        "cause": made.cause,
        "reason": clean_text(reason),
        **detail,
    }
    events.append(connection, made.model, kind, actor, now_us, body, None)
    values = {
        "state": PROPOSAL_STATES[kind],
        "decided_us": now_us,
        "decided_by": actor,
        "reason": body["reason"],
        "detail": detail,
    }
    connection.execute(sa.update(proposal).where(proposal.c.proposal_id == made.proposal_id).values(**values))
    if kind == events.PROPOSAL_WITHDRAWN:
        connection.execute(sa.delete(proposal_support).where(proposal_support.c.proposal_id == made.proposal_id))
    return load(connection, made.model, made.proposal_id)


def take_back_support(
    connection: sa.Connection, model: str, policy: LabelingPolicy, seq: int, now_us: int
) -> Proposal | None:
    """Remove an undone verdict from its proposal; one left with too few is withdrawn and returned."""
    where = [proposal_support.c.model == model, proposal_support.c.seq == seq]
    proposal_id = connection.execute(sa.select(proposal_support.c.proposal_id).where(*where)).scalar_one_or_none()
    if proposal_id is None:
        return None
    connection.execute(sa.delete(proposal_support).where(*where))
    made = load(connection, model, proposal_id)
    left = len(supporters(connection, model, proposal_id))
    if made.state != "open" or left >= policy.proposal_after:
        return None
    detail = made.detail | {"support": left}
    return close(connection, made, events.PROPOSAL_WITHDRAWN, SYSTEM, now_us, "Its support was taken back.", detail)
