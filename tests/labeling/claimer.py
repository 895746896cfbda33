"""A reviewer as a process: claims until the queue is empty and prints every item it was given."""

from __future__ import annotations

import sys

from labeling.store import LabelStore
from schemas.database import open_database


def main(url: str, name: str, mode: str) -> None:
    """Claim an item, wait for a line, then claim all there is; ``submit`` decides on each."""
    store = LabelStore(open_database(url, migrate=False), "small")
    is_first = True
    while (claim := store.next(name)) is not None:
        print(claim.item_id, flush=True)  # noqa: T201
        if is_first:
            sys.stdin.readline()
            is_first = False
        if mode == "submit":
            store.submit(claim.token, verdict="unpredictable", seconds=1.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
