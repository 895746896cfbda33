"""The card that a reviewer decides from: why the item is here, what was said, and what speaks for or against it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from labeling.events import SUBMITTED
from labeling.evidence import Difference, breaches, differences, is_number, suspect_feature
from labeling.extent import COMPARED_ITEMS, PAYLOAD_TEXT, decoded, newest_items
from labeling.items import AUDIT_RULE, Value, is_plain_text
from labeling.leases import Claim
from labeling.proposals import VERDICTS, open_incident
from labeling.store import LabelStore
from labeling.tables import annotation, item
from schemas.contract import Contract
from schemas.database import read

COUNTED_ITEMS = 1_000
"""Like items are counted up to here: "1000 or more" says as much."""
SHARE_MIN = 0.5
"""A field value is worth telling if at least half of the like items have it."""
LIFT_MIN = 1.5
"""... and if it is that much more frequent there than elsewhere."""
PIXEL_NAME = re.compile(r"(.*?)_?([0-9]{2})")
PICTURE_PIXELS = 64


@dataclass(frozen=True)
class FeatureLine:
    """One feature of the input; ``mark`` says what is wrong with it."""

    name: str
    value: Value
    unit: str | None
    mark: str | None


@dataclass(frozen=True)
class Similar:
    """Other open items that look alike.

    ``where`` is a ``field=value`` that ``n_where`` of the newest ``n_compared`` have; ``differences`` is the range by
    which their suspected input is off.
    """

    n: int
    where: str | None
    n_where: int
    n_compared: int
    first_us: int | None
    differences: tuple[float, float] | None


@dataclass(frozen=True)
class Card:
    """Everything that the reviewer sees; rendering decides nothing."""

    model: str
    item_id: str
    prediction_id: str
    token: str
    until_us: int
    kind: str
    rule: str
    policy: str
    selection_probability: float
    complaints: int
    answers: int
    required_n: int
    event_time_us: int
    version: str
    label: str | None
    score: float | None
    truth: str | None
    user_label: str | None
    note: str | None
    differences: tuple[Difference, ...]
    breaches: dict[str, str]
    features: tuple[FeatureLine, ...]
    facts: dict[str, Value]
    similar: Similar
    history: dict[str, int]
    incident: str | None
    incident_from_us: int | None
    labels: tuple[str, ...]
    verdicts: tuple[str, ...]
    picture: tuple[tuple[float, ...], ...] | None

    @property
    def is_audit(self) -> bool:
        """Whether chance picked it, not a rule about what went wrong."""
        return self.rule == AUDIT_RULE

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        shown = asdict(self)
        shown["differences"] = [asdict(d) | {"by": d.by, "is_beyond": d.is_beyond} for d in self.differences]
        return shown


def build_card(store: LabelStore, claim: Claim) -> Card:
    """Gather what the store knows about a claimed item."""
    row, payload, contract = claim.row, claim.payload, store.contract
    features, facts = payload["features"], payload["facts"]
    differ = tuple(differences(features, facts, contract)) if contract else ()
    broken = breaches(features, contract) if contract else {}
    with read(store.engine) as connection:
        similar = _similar(connection, claim, contract)
        found = open_incident(connection, claim.model, row["event_time_us"], suspect_feature(row["suspect"]))
        history = _history(connection, claim)
        answers = connection.execute(
            sa.select(sa.func.count()).where(annotation.c.item == claim.item, annotation.c.kind == SUBMITTED)
        ).scalar_one()
    return Card(
        model=claim.model,
        item_id=claim.item_id,
        prediction_id=row["prediction_id"],
        token=claim.token,
        until_us=claim.until_us,
        kind=row["kind"],
        rule=row["rule"],
        policy=row["policy"],
        selection_probability=row["selection_probability"],
        complaints=1 + row["duplicates"],
        answers=answers,
        required_n=row["required_n"],
        event_time_us=row["event_time_us"],
        version=payload["version"],
        label=payload["label"],
        score=payload["score"],
        truth=payload["truth"],
        user_label=payload["user_label"],
        note=payload["note"],
        differences=differ,
        breaches=broken,
        features=_feature_lines(features, differ, broken, contract),
        facts=facts,
        similar=similar,
        history=history,
        incident=found.message or found.incident_id if found else None,
        incident_from_us=found.from_us if found else None,
        labels=store.labels(),
        verdicts=VERDICTS,
        picture=_picture(features),
    )


def _feature_lines(
    features: dict[str, Value], differ: tuple[Difference, ...], broken: dict[str, str], contract: Contract | None
) -> tuple[FeatureLine, ...]:
    """The features in the contract's order, those with something wrong first."""
    beyond = {d.feature: f"{d.by:+g} against {d.fact}" for d in differ if d.is_beyond}
    marks = broken | beyond
    units = {f.name: f.unit for f in contract.fields} if contract else {}
    names = [name for name in units if name in features] + [name for name in features if name not in units]
    lines = [FeatureLine(name, features[name], units.get(name), marks.get(name)) for name in names]
    return tuple(sorted(lines, key=lambda line: line.mark is None))


def _picture(features: dict[str, Value]) -> tuple[tuple[float, ...], ...] | None:
    """An 8 x 8 picture, if the features are 64 numbers called ``p00 .. p77`` or ``pixel_00 .. pixel_63``."""
    matched = {name: PIXEL_NAME.fullmatch(name) for name in features}
    pixels = sorted((match[2], name) for name, match in matched.items() if match)
    prefixes = {match[1] for match in matched.values() if match}
    if len(pixels) != PICTURE_PIXELS or len(prefixes) != 1:
        return None
    values = [features[name] for _, name in pixels]
    if not all(is_number(value) for value in values):
        return None
    inks = [float(value or 0.0) for value in values]
    return tuple(tuple(inks[i : i + 8]) for i in range(0, PICTURE_PIXELS, 8))


def _history(connection: sa.Connection, claim: Claim) -> dict[str, int]:
    """What people said of items like this one so far."""
    query = (
        sa.select(annotation.c.verdict, annotation.c.answer, sa.func.count())
        .join(item, item.c.id == annotation.c.item)
        .where(item.c.model == claim.model, item.c.cluster == claim.row["cluster"], annotation.c.kind == SUBMITTED)
        .group_by(annotation.c.verdict, annotation.c.answer)
    )
    counts: Counter[str] = Counter()
    for verdict, answer, count in connection.execute(query):
        counts[verdict or answer] += count
    return dict(counts.most_common())


def _similar(connection: sa.Connection, claim: Claim, contract: Contract | None) -> Similar:
    """The other open items of the cluster, and what they have in common with this one."""
    row = claim.row
    mine = [item.c.model == claim.model, item.c.cluster == row["cluster"], item.c.state == "open"]
    others = [*mine, item.c.id != claim.item]
    bounded = sa.select(item.c.id).where(*others).limit(COUNTED_ITEMS).subquery()
    n = connection.execute(sa.select(sa.func.count()).select_from(bounded)).scalar_one()
    if not n:
        return Similar(0, None, 0, 0, None, None)
    first_us = connection.execute(sa.select(sa.func.min(item.c.event_time_us)).where(*others)).scalar_one()
    newest = sa.select(PAYLOAD_TEXT).where(*others).order_by(item.c.event_time_us.desc()).limit(COMPARED_ITEMS)
    alike = [decoded(text) for text in connection.execute(newest).scalars()]
    unlike = [features for cluster, features in newest_items(connection, claim.model) if cluster != row["cluster"]]
    where, n_where = _common(claim.payload["features"], [payload["features"] for payload in alike], unlike)
    return Similar(n, where, n_where, len(alike), first_us, _range(row["suspect"], alike, contract))


def _common(
    features: dict[str, Value], alike: list[dict[str, Value]], unlike: list[dict[str, Value]]
) -> tuple[str | None, int]:
    """The ``field=value`` of this item that sets the features of the like items apart most."""
    best: tuple[float, str, int] | None = None
    for name, value in features.items():
        if not is_plain_text(value):
            continue
        count = sum(other.get(name) == value for other in alike)
        share = count / len(alike)
        elsewhere = sum(other.get(name) == value for other in unlike) / max(len(unlike), 1)
        lift = share / max(elsewhere, 1.0 / COMPARED_ITEMS)
        if share >= SHARE_MIN and lift >= LIFT_MIN and (best is None or lift > best[0]):
            best = (lift, f"{name}={value}", count)
    return (best[1], best[2]) if best else (None, 0)


def _range(suspect: str | None, alike: list[Any], contract: Contract | None) -> tuple[float, float] | None:
    """Smallest and largest difference of the suspected input from the truth feed."""
    feature = suspect_feature(suspect)
    if feature is None or contract is None:
        return None
    by = [
        d.by
        for payload in alike
        for d in differences(payload["features"], payload["facts"], contract)
        if d.feature == feature and d.by is not None
    ]
    return (min(by), max(by)) if by else None
