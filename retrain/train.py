"""The training subprocess: ``python -m retrain.train MEMORY_LIMIT PARENT``, with the paths of specs on its stdin.

A spec is one fit (or one scoring with an artifact). Importing scikit-learn costs more than a second of CPU, so one
process takes several specs, one after the other; it is killed and replaced when one of them fails. It sets its own
memory limit, dies with its parent, writes into the folder that the spec names, and says how it went in ``result.json``
or ``error.json``. What it learns from is the dataset's Parquet file; the same spec gives the same artifact.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from retrain.predictor import Predictor
    from retrain.trainers import Fitted

RESULT, ERROR, SCORES, CASES, ARTIFACT = "result.json", "error.json", "scores.parquet", "cases.parquet", "artifact"
EXIT_FAILED = 3
LOG = "log.txt"
DONE, REPORTED = "done", "reported"
"""Answers on stdout: the result, or the error, is in its file."""
PR_SET_PDEATHSIG = 1
OUTPUT = "p_"


@dataclass(frozen=True)
class Spec:
    """What the subprocess is to do; all of it goes through JSON.

    Parameters
    ----------
    job
        ``fit``: train, keep the artifact, score. ``score``: only score, with ``parent``.
    splits
        Which rows to learn: ``train``, and ``gate`` too when the winner is fitted again.
    boundaries
        Event times of the version column's steps; empty: no such column.
    parent
        Path and SHA-256 of the champion's artifact.
    cases
        Parquet file of fixed failures to score, or None.
    """

    job: str
    rows: str
    out: str
    key_file: str
    kinds: tuple[tuple[str, str], ...]
    target: dict[str, Any]
    memory_limit_bytes: int
    trainer: str = ""
    params: dict[str, Any] | None = None
    seed: int = 0
    splits: tuple[str, ...] = ("train",)
    recipe: str = "mixed"
    boundaries: tuple[int, ...] = ()
    is_weighted: bool = False
    parent: tuple[str, str] | None = None
    parent_until_us: int | None = None
    cases: str | None = None

    def to_json(self) -> str:
        """The spec's file."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The inverse of :meth:`to_json`."""
        told = json.loads(text)
        for name in ("splits", "boundaries"):
            told[name] = tuple(told[name])
        told["kinds"] = tuple((name, kind) for name, kind in told["kinds"])
        told["parent"] = tuple(told["parent"]) if told["parent"] else None
        return cls(**told)


def run(spec: Spec) -> dict[str, Any]:
    """Do what the spec says; the result is also written to its folder."""
    import polars as pl

    from retrain.artifacts import load_artifact
    from retrain.columns import with_columns

    _forget_peak()
    cpu_started = time.process_time()
    key = Path(spec.key_file).read_bytes()
    out = Path(spec.out)
    parent = load_artifact(Path(spec.parent[0]), spec.parent[1], key=key) if spec.parent else None
    rows = with_columns(pl.read_parquet(spec.rows), spec.boundaries)
    cases = with_columns(pl.read_parquet(spec.cases), spec.boundaries) if spec.cases else None
    if spec.job == "score":
        assert parent is not None
        _score(parent, rows, cases, out)
        return _finish(out, {"seconds": 0.0}, cpu_started)
    started = time.perf_counter()
    fitted, told = _fit(spec, rows, parent)
    told["seconds"] = round(time.perf_counter() - started, 3)
    predictor = _keep(spec, fitted, told, rows, key)
    _score(predictor, rows, cases, out)
    return _finish(out, told, cpu_started)


def _fit(spec: Spec, rows: pl.DataFrame, parent: Predictor | None) -> tuple[Fitted, dict[str, Any]]:
    import polars as pl

    from retrain.columns import kept_rows
    from retrain.errors import NotEnoughRowsError
    from retrain.recipes import VERSION_COLUMN, parse_recipe
    from retrain.trainers import Job, trainer
    from schemas.contract import Target

    learnt = rows.filter(pl.col("@split").is_in(list(spec.splits)), kept_rows(parse_recipe(spec.recipe)))
    if learnt.is_empty():
        raise NotEnoughRowsError("The recipe leaves no rows to train on.")
    added: Sequence[tuple[str, str]] = ((VERSION_COLUMN, "number"),) if spec.boundaries else ()
    target = Target(**(spec.target | {"labels": tuple(spec.target["labels"])}))
    job = Job(
        rows=learnt,
        y=learnt["@y"].to_numpy(),
        weights=learnt["@weight"].to_numpy() if spec.is_weighted else None,
        kinds=(*spec.kinds, *added),
        target=target,
        params=spec.params or {},
        seed=spec.seed,
        parent=parent,
        parent_until_us=spec.parent_until_us,
    )
    fitted = trainer(spec.trainer).fit(job)
    until = learnt["event_time"].max()
    return fitted, {"rows": learnt.height, "params": fitted.params, "notes": fitted.notes, "trained_until_us": until}


def _keep(spec: Spec, fitted: Fitted, told: dict[str, Any], rows: pl.DataFrame, key: bytes) -> Predictor:
    """Save the artifact, and go on with what was loaded from it, not with what is in memory."""
    from retrain.artifacts import library_versions, load_artifact, reference_rows, save_artifact
    from retrain.recipes import serving_constants
    from schemas.contract import Target

    constants = serving_constants(spec.boundaries)
    card = {"versions": library_versions(), "rows": told["rows"], "params": told["params"], "recipe": spec.recipe}
    folder = Path(spec.out) / ARTIFACT
    target = Target(**(spec.target | {"labels": tuple(spec.target["labels"])}))
    told["artifact_sha256"] = save_artifact(
        folder,
        name=spec.trainer,
        estimator=fitted.estimator,
        encoder=fitted.encoder,
        target=target,
        constants=constants,
        reference=reference_rows(rows, fitted.encoder, constants),
        card=card,
        key=key,
    )
    told["constants"] = constants
    told["versions"] = card["versions"]
    return load_artifact(folder, told["artifact_sha256"], key=key)


def _score(predictor: Predictor, rows: pl.DataFrame, cases: pl.DataFrame | None, out: Path) -> None:
    import polars as pl

    for name, frame in ((SCORES, rows.filter(pl.col("@split") == "gate")), (CASES, cases)):
        if frame is not None:
            outputs = predictor.predict(frame).outputs
            columns = [pl.Series(f"{OUTPUT}{at}", outputs[:, at]) for at in range(outputs.shape[1])]
            frame.select("prediction_id").with_columns(columns).write_parquet(out / name)


def _finish(out: Path, told: dict[str, Any], cpu_started: float) -> dict[str, Any]:
    told["cpu_seconds"] = round(time.process_time() - cpu_started, 3)
    told["peak_rss_bytes"] = _peak_rss_bytes()
    (out / RESULT).write_text(json.dumps(told, sort_keys=True))
    return told


def _peak_rss_bytes() -> int:
    """The largest memory of this process since :func:`_forget_peak`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def confine(memory_limit_bytes: int) -> None:
    """Set the memory limit, and ask the kernel to end this process with its parent."""
    if sys.platform == "linux":  # elsewhere there is no limit that means memory
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def work(spec_path: Path) -> bool:
    """Run the spec of a file; whether it went well. What it says goes to a log beside it."""
    from schemas.errors import FlywheelError

    spec = Spec.from_json(spec_path.read_text())
    try:
        run(spec)
    except MemoryError:
        told = {"kind": "memory", "message": f"more than {spec.memory_limit_bytes >> 20} MB"}
    except FlywheelError as error:
        told = {"kind": type(error).__name__, "message": error.message, "advice": error.advice}
    except Exception as error:  # the trainer's own, whatever it is: it ends this job, not the run
        traceback.print_exc()
        told = {"kind": "error", "message": f"{type(error).__name__}: {error}"}
    else:
        return True
    (Path(spec.out) / ERROR).write_text(json.dumps(told))
    return False


def main(arguments: list[str]) -> int:
    """Confine this process, then run the specs whose paths come on stdin, and answer each on stdout."""
    memory_limit_bytes, parent_id = int(arguments[0]), int(arguments[1])
    confine(memory_limit_bytes)
    if os.getppid() != parent_id:  # it ended before the kernel was asked to tell us
        return EXIT_FAILED
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        path = Path(line.strip())
        with (path.parent / LOG).open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        answers.write(f"{DONE if work(path) else REPORTED}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
