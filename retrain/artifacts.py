"""Artifacts on disk, and the one function that loads them.

An artifact is a folder: the model's bytes, a card (features, target, constants, versions), and reference rows with the
predictions that the model gave for them when it was trained. ``artifact.json`` names the SHA-256 of each file; its own
SHA-256 is the artifact's identity, and ``signature`` signs that with the installation's key. An artifact is refused
unless every hash fits, its types are on the trainer's list, and it gives its reference predictions again bit for bit.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from retrain.encoding import Encoder
from retrain.errors import ArtifactRefusedError
from retrain.paths import Paths, file_sha256
from retrain.predictor import Estimator, Predictor
from retrain.trainers import TRAINERS, trainer
from schemas.contract import Target

INDEX, SIGNATURE, CARD, MODEL, REFERENCE = "artifact.json", "signature", "card.json", "model.bin", "reference.parquet"
REFERENCE_ROWS = 64
EXPECTED = "@expected_"
UNSEEN = "\x00never seen"
FAR = 1e12


def reference_rows(rows: pl.DataFrame, encoder: Encoder, constants: dict[str, float]) -> pl.DataFrame:
    """A spread of training rows, and rows at the edge of the world: nothing known, values far out, unseen texts."""
    step = max(rows.height // REFERENCE_ROWS, 1)
    spread = rows.select(encoder.names).gather_every(step).head(REFERENCE_ROWS)
    edges: dict[str, list[Any]] = {}
    for column in encoder.columns:
        values: list[Any] = [None, UNSEEN, None] if column.kind == "category" else [None, FAR, -FAR]
        if column.kind == "boolean":
            values = [None, True, False]
        edges[column.name] = [constants[column.name]] * 3 if column.name in constants else values
    return pl.concat([spread, pl.DataFrame(edges, schema=spread.schema)])


def save_artifact(
    folder: Path,
    *,
    name: str,
    estimator: Estimator,
    encoder: Encoder,
    target: Target,
    constants: dict[str, float],
    reference: pl.DataFrame,
    card: dict[str, Any],
    key: bytes,
) -> str:
    """Write an artifact to ``folder`` (which must not exist) and return its SHA-256.

    Raises
    ------
    ArtifactRefusedError
        If what was written does not load, or does not predict the same.
    """
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    module = trainer(name)
    (draft / MODEL).write_bytes(module.dump(estimator))
    told = card | {
        "trainer": name,
        "format": module.FORMAT,
        "columns": encoder.to_json(),
        "target": asdict(target),
        "constants": constants,
    }
    (draft / CARD).write_text(json.dumps(told, sort_keys=True, indent=1))
    outputs = estimator.outputs(encoder.matrix(reference), reference)
    expected = [pl.Series(f"{EXPECTED}{at}", outputs[:, at]) for at in range(outputs.shape[1])]
    reference.with_columns(expected).write_parquet(draft / REFERENCE)
    index = {"files": {file: file_sha256(draft / file) for file in (CARD, MODEL, REFERENCE)}}
    (draft / INDEX).write_text(json.dumps(index, sort_keys=True))
    sha256 = file_sha256(draft / INDEX)
    (draft / SIGNATURE).write_text(_signature(sha256, key))
    load_artifact(draft, sha256, key=key)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return sha256


def _signature(sha256: str, key: bytes) -> str:
    return hmac.new(key, f"flywheel artifact {sha256}".encode(), hashlib.sha256).hexdigest()


def load_artifact(path: Path, sha256: str, *, key: bytes) -> Predictor:
    """Load a model: the only place where the bytes of a model become code that runs.

    Parameters
    ----------
    path
        The artifact's folder.
    sha256
        Its identity, from the registry or a ``models`` event.
    key
        The installation's key, :meth:`retrain.paths.Paths.key`.

    Raises
    ------
    ArtifactRefusedError
        If a file is gone or changed, the signature is not ours, a type is not on the list, or the reference predictions
        differ in one bit.
    """
    files = _verified(path, sha256, key)
    card = json.loads(files[CARD])
    if card["trainer"] not in TRAINERS:
        raise ArtifactRefusedError(f"The artifact {sha256[:12]} is of the unknown trainer '{card['trainer']}'.")
    told = card["target"]
    target = Target(**(told | {"labels": tuple(told["labels"])}))
    encoder = Encoder.from_json(card["columns"])
    try:
        estimator = trainer(card["trainer"]).load(files[MODEL], target, encoder)
    except Exception as error:  # whatever the library says about bytes that it does not like
        raise ArtifactRefusedError(f"The artifact {sha256[:12]} cannot be read: {error}") from error
    predictor = Predictor(estimator, encoder, target, dict(card["constants"]), card)
    _reproduce(predictor, pl.read_parquet(files[REFERENCE]), sha256)
    return predictor


def _verified(path: Path, sha256: str, key: bytes) -> dict[str, bytes]:
    """The artifact's files, each with the hash that the index names, the index with the one that was asked for."""
    try:
        index = (path / INDEX).read_bytes()
        signature = (path / SIGNATURE).read_text().strip()
        files = {file: (path / file).read_bytes() for file in (CARD, MODEL, REFERENCE)}
    except OSError as error:
        raise ArtifactRefusedError(f"The artifact {sha256[:12]} is not whole: {error.strerror}.") from error
    if hashlib.sha256(index).hexdigest() != sha256:
        raise ArtifactRefusedError(f"The artifact in {path.name} is not {sha256[:12]}: its index has another hash.")
    if not hmac.compare_digest(signature, _signature(sha256, key)):
        raise ArtifactRefusedError(f"The artifact {sha256[:12]} is not signed by this installation.")
    told = json.loads(index)["files"]
    for file, data in files.items():
        if hashlib.sha256(data).hexdigest() != told.get(file):
            raise ArtifactRefusedError(f"The file {file} of artifact {sha256[:12]} was changed.")
    return files


def _reproduce(predictor: Predictor, reference: pl.DataFrame, sha256: str) -> None:
    names = [name for name in reference.columns if name.startswith(EXPECTED)]
    rows = reference.drop(names)
    expected = reference.select(names).to_numpy()
    got = predictor.estimator.outputs(predictor.encoder.matrix(rows), rows)
    if got.shape != expected.shape or got.tobytes() != np.ascontiguousarray(expected).tobytes():
        raise ArtifactRefusedError(
            f"The artifact {sha256[:12]} does not give its reference predictions again.",
            action=f"It was trained with {versions_text(predictor.card)}; use these versions or train again.",
        )


def versions_text(card: dict[str, Any]) -> str:
    """The library versions of an artifact's card, as text."""
    versions: dict[str, str] = card.get("versions", {})
    return ", ".join(f"{library} {version}" for library, version in sorted(versions.items())) or "unknown versions"


class ArtifactStore:
    """The artifacts of one state directory."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def load(self, sha256: str) -> Predictor:
        """Load by identity; see :func:`load_artifact`."""
        return load_artifact(self.paths.artifact(sha256), sha256, key=self.paths.key())

    def adopt(self, folder: Path, sha256: str) -> Path:
        """Bring a fitted artifact to its place; the same one is there only once."""
        place = self.paths.artifact(sha256)
        if not (place / INDEX).exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_name(f"{place.name}.{os.getpid()}.unfinished")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(folder, draft)
            try:
                draft.rename(place)
            except OSError:  # another process was first with the same content
                shutil.rmtree(draft, ignore_errors=True)
        return place


def library_versions(names: Sequence[str] = ("numpy", "polars", "river", "scikit-learn", "skops")) -> dict[str, str]:
    """Versions of the libraries that a model depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
