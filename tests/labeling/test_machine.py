"""Whatever reviewers do in whatever order: one lease an item, and the state is what the events say."""

from __future__ import annotations

import tempfile
from pathlib import Path

import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from labeling import projection
from labeling.errors import AlreadyLabeledError, ItemNotOpenError, StaleLeaseError
from labeling.leases import Claim, Filters
from labeling.policy import LabelingPolicy
from labeling.proposals import VERDICTS
from labeling.store import LabelStore
from labeling.tables import annotation, item, proposal_support
from labeling.testing import ManualClock, new_item, small_contract
from schemas.database import open_database, read

REVIEWERS = ("ann", "ben", "cy")
STATE = ("id", "state", "answer", "verdict", "skips", "rank", "duplicates")


class Queue(RuleBasedStateMachine):
    """Three reviewers at one queue; ``held`` is a plain model of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.engine = open_database(f"sqlite:///{Path(self.folder.name) / 'labels.db'}")
        self.clock = ManualClock()
        policy = LabelingPolicy(required_n=2, proposal_after=2)
        self.store = LabelStore(self.engine, "small", policy, clock=self.clock, contract=small_contract())
        self.held: dict[int, Claim] = {}
        self.stale: list[Claim] = []
        self.made = 0

    def teardown(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()

    def _claimed(self, claim: Claim) -> None:
        holder = self.held.get(claim.item)
        if holder is not None:
            assert holder.until_us <= self.clock.now_us or holder.holder == claim.holder, "a lease is held twice"
            self.stale.append(holder)
        self.held[claim.item] = claim

    @rule(again=st.booleans(), is_off=st.booleans())
    def ingest(self, again: bool, is_off: bool) -> None:
        number = max(self.made - 1, 0) if again else self.made
        self.made = max(self.made, number + 1)
        self.store.ingest([new_item(number, features={"delay_known": 30.0} if is_off else {})])

    @rule(who=st.sampled_from(REVIEWERS), state=st.sampled_from(["open", "open", "flagged"]))
    def next(self, who: str, state: str) -> None:
        claim = self.store.next(who, Filters(state=state))
        if claim is not None:
            self._claimed(claim)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), kind=st.sampled_from(["submit", "submit", "submit", "skip", "flag", "release"]))
    def decide(self, data: st.DataObject, kind: str) -> None:
        claim = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        try:
            if kind == "submit":
                verdict = data.draw(st.sampled_from((None, *VERDICTS)))
                answer = data.draw(st.sampled_from(("late", "on_time", *(() if verdict is None else (None,)))))
                self.store.submit(claim.token, answer=answer, verdict=verdict)
            else:
                getattr(self.store, kind)(claim.token)
        except AlreadyLabeledError:
            self.held[claim.item] = claim
        self.stale.append(claim)

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def submit_with_a_stale_token(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.stale))
        if self.held.get(claim.item) == claim:
            return
        before = self.store.stats()
        try:
            self.store.submit(claim.token, answer="late")
        except StaleLeaseError:
            assert self.store.stats() == before
        else:
            raise AssertionError("a stale token was accepted")

    @rule(who=st.sampled_from(REVIEWERS))
    def undo(self, who: str) -> None:
        undone = self.store.undo(who)
        if undone is not None and undone.claim is not None:
            self._claimed(undone.claim)

    @rule(who=st.sampled_from(REVIEWERS), verdict=st.sampled_from(VERDICTS))
    def decide_and_undo_is_nothing(self, who: str, verdict: str) -> None:
        claim = self.store.next(who)
        if claim is None:
            return
        self._claimed(claim)
        before = self._state()
        self.store.submit(claim.token, verdict=verdict)
        undone = self.store.undo(who)
        assert undone is not None
        assert undone.claim is not None
        self.held[claim.item] = undone.claim
        self.stale.append(claim)
        assert self._state() == before

    @precondition(lambda self: self.made)
    @rule(who=st.sampled_from(REVIEWERS), data=st.data())
    def claim_by_name(self, who: str, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.made - 1))
        try:
            self._claimed(self.store.claim(who, f"p{number}/confident"))
        except ItemNotOpenError:
            pass

    @rule(seconds=st.sampled_from([1, 599, 600, 5000]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.store.proposals("open"))
    @rule(is_accepted=st.booleans())
    def rule_on_a_proposal(self, is_accepted: bool) -> None:
        made = self.store.proposals("open")[0]
        decided = (self.store.accept if is_accepted else self.store.refuse)(made.proposal_id, "ann")
        assert decided.state == ("accepted" if is_accepted else "refused")

    def _state(self) -> tuple[list[object], list[object], list[object]]:
        with read(self.engine) as connection:
            rows = connection.execute(sa.select(*(item.c[name] for name in STATE)).order_by(item.c.id)).all()
            standing = connection.execute(sa.select(annotation).order_by(*annotation.primary_key.columns)).all()
            support = connection.execute(sa.select(proposal_support).order_by(proposal_support.c.seq)).all()
        return list(rows), list(standing), [row for row in support]

    @invariant()
    def the_state_is_a_replay_of_the_events(self) -> None:
        folded = self.store.labels_as_of()
        _, standing, support = self._state()
        expected = [projection._values(a, "small") for a in folded.annotations()]
        assert [row._asdict() for row in standing] == expected  # type: ignore[attr-defined]
        assert {row.seq: row.proposal_id for row in support} == folded.support  # type: ignore[attr-defined]
        made = {p.proposal_id: p for p in self.store.proposals()}
        assert made == folded.proposals

    @invariant()
    def a_rebuild_changes_nothing(self) -> None:
        before = self._state()
        self.store.rebuild()
        assert self._state() == before

    @invariant()
    def the_chain_is_whole(self) -> None:
        self.store.verify_chain()


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
