"""A reviewer as a process: claims until the queue is empty and prints every item it was given."""

from __future__ import annotations

import sys

from labeling.store import LabelStore
from schemas.database import open_database


def main(url: str, name: str, mode: str) -> None:
    """Claim all there is; ``submit`` decides each item, ``hold`` keeps the first one until it is killed."""
    store = LabelStore(open_database(url, migrate=False), "small")
    while (claim := store.next(name)) is not None:
        print(claim.item_id, flush=True)  # noqa: T201
        if mode == "hold":
            sys.stdin.read()
        if mode == "submit":
            store.submit(claim.token, verdict="unpredictable", seconds=1.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
