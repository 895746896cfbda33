"""Start training subprocesses, at most so many at once, each with a time and a memory limit; find again what is done.

The folder of a fit is named by the hash of everything that it depends on, and appears there whole (it is written under
another name and renamed). So after kill -9 a run finds the fits that were finished, and only those.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from retrain.artifacts import library_versions
from retrain.errors import TrainerFailedError, TrainerMemoryError, TrainerTimeoutError
from retrain.paths import Paths, file_sha256
from retrain.train import CASES, ERROR, OUTPUT, RESULT, SCORES, Spec

LOG = "log.txt"
LOG_TAIL_CHARS = 400
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
"""With a second busy process on two cores scikit-learn's default threads took 20 to 41 s for fits of 0.3 to 1.8 s. The
hash seed makes the order of sets, and with it the state of an online learner, the same in every run."""


@dataclass(frozen=True)
class FitResult:
    """A finished subprocess: where it left its files, and what it said."""

    folder: Path
    told: dict[str, Any]

    def outputs(self) -> pl.DataFrame:
        """Predictions of the held-out rows: ``prediction_id`` and one column an output."""
        return pl.read_parquet(self.folder / SCORES)

    def cases(self) -> pl.DataFrame | None:
        """Predictions of the fixed failures."""
        path = self.folder / CASES
        return pl.read_parquet(path) if path.exists() else None


def fit_key(spec: Spec, rows_sha256: str) -> str:
    """Hash of everything that a fit depends on; folders and limits are no part of it.

    The version of the libraries is: another scikit-learn gives another model.
    """
    told = asdict(replace(spec, out="", key_file="", rows=rows_sha256, memory_limit_bytes=0))
    told["cases"] = file_sha256(Path(spec.cases)) if spec.cases else None
    told["parent"] = spec.parent[1] if spec.parent else None
    told["versions"] = library_versions()
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class Launcher:
    """Runs specs in subprocesses.

    Parameters
    ----------
    time_limit_s
        Of each subprocess; it is killed with everything that it started.
    parallel
        How many run at once.
    """

    def __init__(self, paths: Paths, *, time_limit_s: float, memory_limit_mb: int, parallel: int = 2) -> None:
        self.paths = paths
        self.time_limit_s = time_limit_s
        self.memory_limit_bytes = memory_limit_mb << 20
        self.parallel = parallel

    def run_all(self, specs: Sequence[Spec], rows_sha256: str) -> list[FitResult | TrainerFailedError]:
        """Run the specs; a failure is a value, so that one trainer cannot take the others with it."""

        def one(spec: Spec) -> FitResult | TrainerFailedError:
            try:
                return self.run(spec, rows_sha256)
            except TrainerFailedError as error:
                return error

        with ThreadPoolExecutor(self.parallel, thread_name_prefix="fit") as pool:
            return list(pool.map(one, specs))

    def run(self, spec: Spec, rows_sha256: str) -> FitResult:
        """Run one spec, or find what it left when it ran before.

        Raises
        ------
        TrainerFailedError
            If the subprocess failed, or took too long (:class:`TrainerTimeoutError`) or too much
            (:class:`TrainerMemoryError`).
        """
        spec = replace(spec, memory_limit_bytes=self.memory_limit_bytes)
        folder = self.paths.fit(fit_key(spec, rows_sha256))
        if (folder / RESULT).exists():
            return FitResult(folder, json.loads((folder / RESULT).read_text()) | {"reused": True})
        draft = folder.with_name(f"{folder.name}.{os.getpid()}.unfinished")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        spec = replace(spec, out=str(draft))
        (draft / "spec.json").write_text(spec.to_json())
        self._wait(draft)
        try:
            draft.rename(folder)
        except OSError:  # another process finished the same fit first
            shutil.rmtree(draft, ignore_errors=True)
        return FitResult(folder, json.loads((folder / RESULT).read_text()) | {"reused": False})

    def _wait(self, draft: Path) -> None:
        command = [sys.executable, "-m", "retrain.train", str(draft / "spec.json"), str(os.getpid())]
        with (draft / LOG).open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | ONE_THREAD,
                start_new_session=True,
            )
            try:
                code = process.wait(self.time_limit_s)
            except subprocess.TimeoutExpired:
                raise TrainerTimeoutError(f"The trainer took longer than {self.time_limit_s:g} s.") from None
            finally:
                _kill(process)
        if code != 0:
            raise _failure(draft, code)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the subprocess and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _failure(draft: Path, code: int) -> TrainerFailedError:
    if (draft / ERROR).exists():
        told = json.loads((draft / ERROR).read_text())
        if told["kind"] == "memory":
            return TrainerMemoryError(f"The trainer needed {told['message']}.")
        return TrainerFailedError(told["message"], action=told.get("advice") or TrainerFailedError.action)
    if code < 0:
        return TrainerFailedError(f"The trainer was ended by {signal.Signals(-code).name}.")
    tail = (draft / LOG).read_text(errors="replace")[-LOG_TAIL_CHARS:].strip()
    return TrainerFailedError(f"The trainer ended with exit code {code}: {tail or 'it said nothing'}")


__all__ = ["OUTPUT", "FitResult", "Launcher", "fit_key"]
