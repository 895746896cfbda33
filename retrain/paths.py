"""Where datasets, artifacts, runs and keys stand under the state directory."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 20
KEY_BYTES = 32


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Paths:
    """The folders of one state directory; what the database stores is relative to ``root``."""

    root: Path

    @property
    def archive(self) -> Path:
        """Every event, as Parquet."""
        return self.root / "archive"

    def dataset(self, digest: str) -> Path:
        """The folder of one dataset: ``manifest.json`` and its Parquet file."""
        return self.root / "datasets" / digest

    def artifact(self, digest: str) -> Path:
        """The folder of one artifact."""
        return self.root / "models" / digest

    def fit(self, key: str) -> Path:
        """The folder of one fit (what was asked for is its key), so that a run after a crash finds it."""
        return self.root / "fits" / key

    def run(self, run_id: str) -> Path:
        """Reports of one run."""
        return self.root / "runs" / run_id

    def weak(self, model: str) -> Path:
        """What the last look for weak slices of a model found."""
        return self.root / "weak" / f"{model}.json"

    def parity(self, model: str) -> Path:
        """What the last check of served inputs against the feature code of training found."""
        return self.root / "parity" / f"{model}.json"

    def daily(self, name: str, model: str) -> Path:
        """How far a model is with what is done for it every day."""
        return self.root / "daily" / name / f"{model}.json"

    def relative(self, path: Path) -> str:
        """``path`` as the database stores it."""
        return path.relative_to(self.root).as_posix()

    def key(self) -> bytes:
        """The secret that signs artifacts; made once, readable by its owner only."""
        path = self.root / "keys" / "artifact.key"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = path.with_name(f"artifact.key.{os.getpid()}.{secrets.token_hex(4)}")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(KEY_BYTES))
            try:
                os.link(draft, path)  # fails when another process was first: its key is the one that counts
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return path.read_bytes()
