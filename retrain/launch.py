"""Start training subprocesses, at most so many at once, each with a time and a memory limit; find again what is done.

The folder of a fit is named by the hash of everything that it depends on, and appears there whole (it is written under
another name and renamed). So after kill -9 a run finds the fits that were finished, and only those.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self, TypeVar

import polars as pl

from retrain.artifacts import library_versions
from retrain.errors import TrainerFailedError, TrainerMemoryError, TrainerTimeoutError
from retrain.paths import Paths, file_sha256
from retrain.train import CASES, DONE, ERROR, EXIT_FAILED, LOG, OUTPUT, REPORTED, RESULT, SCORES, Spec

LOG_TAIL_CHARS = 400
WAIT_S = 0.2
"""How late Ctrl-C may be noticed."""
T = TypeVar("T")
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


class _Process:
    """One training subprocess, used for one spec after the other."""

    def __init__(self, memory_limit_bytes: int) -> None:
        command = [sys.executable, "-m", "retrain.train", str(memory_limit_bytes), str(os.getpid())]
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | ONE_THREAD,
            start_new_session=True,
        )

    def work(self, spec_path: Path, limit_s: float) -> int | None:
        """Run one spec: 0 if it is done, EXIT_FAILED if it reported an error, another code if the process ended, None
        if the time is over. The process can take another spec after a 0 only."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        try:
            self.popen.stdin.write(f"{spec_path}\n".encode())
            self.popen.stdin.flush()
        except BrokenPipeError:
            return self.popen.wait()
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.popen.stdout, selectors.EVENT_READ)
            if not waiting.select(limit_s):
                return None
        answer = self.popen.stdout.readline().decode().strip()
        if answer == DONE:
            return 0
        return EXIT_FAILED if answer == REPORTED else self.popen.wait()

    def kill(self) -> None:
        """Kill the process and all that it started."""
        if self.popen.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, and leave nothing behind."""
        self.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


class Launcher:
    """Runs specs in subprocesses; a context manager, at whose end no subprocess is left.

    Parameters
    ----------
    time_limit_s
        Of each spec; its process is killed with everything that it started.
    parallel
        How many processes there are at most.
    """

    def __init__(self, paths: Paths, *, time_limit_s: float, memory_limit_mb: int, parallel: int = 2) -> None:
        self.paths = paths
        self.time_limit_s = time_limit_s
        self.memory_limit_bytes = memory_limit_mb << 20
        # A subprocess dies with the thread that started it (PR_SET_PDEATHSIG), so the threads live as long as we do.
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="fit")
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._alive: set[_Process] = set()
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._alive):  # those at work too: their threads then see the end of the pipe
            process.kill()
        self._threads.shutdown()
        for process in self._alive:
            process.end()

    def run_all(self, specs: Sequence[Spec], rows_sha256: str) -> list[FitResult | TrainerFailedError]:
        """Run the specs; a failure is a value, so that one trainer cannot take the others with it."""

        def one(spec: Spec) -> FitResult | TrainerFailedError:
            try:
                return self._run(spec, rows_sha256)
            except TrainerFailedError as error:
                return error

        return [_result(future) for future in [self._threads.submit(one, spec) for spec in specs]]

    def run(self, spec: Spec, rows_sha256: str) -> FitResult:
        """Run one spec, or find what it left when it ran before.

        Raises
        ------
        TrainerFailedError
            If it failed, or took too long (:class:`TrainerTimeoutError`) or too much (:class:`TrainerMemoryError`).
        """
        return _result(self._threads.submit(self._run, spec, rows_sha256))

    def _run(self, spec: Spec, rows_sha256: str) -> FitResult:
        spec = replace(spec, memory_limit_bytes=self.memory_limit_bytes)
        folder = self.paths.fit(fit_key(spec, rows_sha256))
        if (folder / RESULT).exists():
            return FitResult(folder, json.loads((folder / RESULT).read_text()) | {"reused": True})
        draft = folder.with_name(f"{folder.name}.{os.getpid()}.unfinished")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        spec = replace(spec, out=str(draft))
        (draft / "spec.json").write_text(spec.to_json())
        self._work(draft)
        try:
            draft.rename(folder)
        except OSError:  # another process finished the same fit first
            shutil.rmtree(draft, ignore_errors=True)
        return FitResult(folder, json.loads((folder / RESULT).read_text()) | {"reused": False})

    def _work(self, draft: Path) -> None:
        try:
            process = self._idle.get_nowait()
        except Empty:
            process = _Process(self.memory_limit_bytes)
            self._alive.add(process)
            if self._is_over:
                process.kill()
        code: int | None = EXIT_FAILED
        try:
            code = process.work(draft / "spec.json", self.time_limit_s)
        finally:
            if code == 0:
                self._idle.put(process)
            else:
                self._alive.discard(process)
                process.end()
        if code is None:
            raise TrainerTimeoutError(f"The trainer took longer than {self.time_limit_s:g} s.")
        if code != 0:
            raise _failure(draft, code)


def _result(future: Future[T]) -> T:
    """A future's result, in a wait that Ctrl-C can end.

    polars installs its own handler of SIGINT, with SA_RESTART: a thread that waits for a lock is then not woken by the
    signal, and Python sees it only when the wait is over.
    """
    while not wait([future], timeout=WAIT_S).done:
        pass
    return future.result()


def _failure(draft: Path, code: int) -> TrainerFailedError:
    if (draft / ERROR).exists():
        told = json.loads((draft / ERROR).read_text())
        if told["kind"] == "memory":
            return TrainerMemoryError(f"The trainer needed {told['message']}.")
        return TrainerFailedError(told["message"], action=told.get("advice") or TrainerFailedError.action)
    if code < 0:
        return TrainerFailedError(f"The trainer was ended by {signal.Signals(-code).name}.")
    log = draft / LOG
    tail = log.read_text(errors="replace")[-LOG_TAIL_CHARS:].strip() if log.exists() else ""
    return TrainerFailedError(f"The trainer ended with exit code {code}: {tail or 'it said nothing'}")


__all__ = ["OUTPUT", "FitResult", "Launcher", "fit_key"]
