"""A dataset is a manifest: which offsets, which label events, which split, and the hash of what came out.

The manifest is canonical JSON and its SHA-256 is the dataset's name. The same offsets and label events give the same
rows, so they give the same name: :func:`retrain.dataset.rebuild_dataset` proves it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

FORMAT = 1
MANIFEST, ROWS = "manifest.json", "rows.parquet"


def canonical(document: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one document.

    >>> canonical({"b": 1, "a": [1, 2]})
    '{"a":[1,2],"b":1}'
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Manifest:
    """A dataset, told by what it is made of."""

    document: dict[str, Any]

    @property
    def hash(self) -> str:
        """The dataset's name."""
        return hashlib.sha256(canonical(self.document).encode()).hexdigest()

    @property
    def rows_sha256(self) -> str:
        """Hash of the Parquet file."""
        return str(self.document["parquet"][ROWS]["sha256"])

    @property
    def counts(self) -> dict[str, int]:
        """Rows by what became of them."""
        return dict(self.document["counts"])

    @property
    def failed_checks(self) -> list[dict[str, Any]]:
        """Checks of the dataset that did not pass."""
        return [check for check in self.document["checks"] if not check["passed"]]
