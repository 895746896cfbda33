"""A new embedded broker has empty topics: what the database still knows of them is told again.

Who is champion (serving processes learn it from the topic), and label events that retraining has not taken in yet.
Consumers are idempotent on the events' ids.
"""

from __future__ import annotations

import sqlalchemy as sa

from labeling.events import record
from retrain.registry import CHAMPION, models_record
from retrain.tables import label_fact
from schemas.database import read, write
from schemas.database.outbox import enqueue
from streams.runtime import Runtime

PAGE = 1_000


def recall(runtime: Runtime) -> None:
    """Put the events into the outbox."""
    for model, store in runtime.label_stores.items():
        moves = [event for event in runtime.models.history(model) if event.alias == CHAMPION]
        champion = runtime.models.resolve(model)
        if moves and champion is not None:
            newest = max(moves, key=lambda event: event.time_us)
            if newest.version == champion.version:
                with write(runtime.engine) as connection:
                    enqueue(connection, "models", model, models_record(newest, champion))
        after = 0
        while page := store.events(after, PAGE):
            after = page[-1].seq
            with read(runtime.engine) as connection:
                known = sa.select(label_fact.c.event_id).where(
                    label_fact.c.model == model, label_fact.c.seq.between(page[0].seq, after)
                )
                taken = set(connection.execute(known).scalars())
            with write(runtime.engine) as connection:
                for event in page:
                    if event.event_id not in taken:
                        enqueue(connection, "labels", model, record(event))
