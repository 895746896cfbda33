"""Row-level parity: does the feature code of training give what the service read?

A sample of served inputs is handed to a function of the user's, the one that training's features come from, and every
value is held against what was served. The function runs in a subprocess of its own (``python -m retrain.parity SPEC``)
with a time and a memory limit, so that nothing it does can reach the caller.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from retrain.errors import NoParityError, ParityError
from retrain.joined import KIND_TYPES, Ends, feature_columns
from retrain.launch import ONE_THREAD
from retrain.policy import ParityPolicy
from retrain.train import confine
from schemas import archive
from schemas.contract import Contract, Field

SEED = 0x9A81
EXAMPLES = 5
LOG_TAIL_CHARS = 600
ROWS, FEATURES, ERROR, LOG = "rows.parquet", "features.parquet", "error.json", "log.txt"


@dataclass(frozen=True)
class FeatureParity:
    """One feature, served and recomputed.

    Attributes
    ----------
    rows, exact, beyond
        Rows that were recomputed; those that are equal; those that differ by more than the contract's tolerance.
    examples
        The first rows that differ, the farthest apart first: id, time, served and recomputed value.
    """

    feature: str
    rows: int
    exact: int
    beyond: int
    examples: tuple[dict[str, Any], ...] = ()

    @property
    def exact_share(self) -> float:
        """Of its rows."""
        return self.exact / self.rows if self.rows else 1.0


@dataclass(frozen=True)
class Parity:
    """What a check found.

    Attributes
    ----------
    sampled, recomputed
        Rows that were handed to the function, and those that it gave features of.
    features
        The worst first.
    absent
        Features of the contract that it does not give.
    """

    sampled: int
    recomputed: int
    features: tuple[FeatureParity, ...]
    absent: tuple[str, ...]

    def wrong(self, max_share: float) -> list[FeatureParity]:
        """Features of which too many rows differ."""
        return [each for each in self.features if each.beyond > max_share * each.rows]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        listed = [asdict(each) | {"exact_share": round(each.exact_share, 6)} for each in self.features]
        return asdict(self) | {"features": listed}


def sample_rows(
    root: Path, contract: Contract, since_us: int, until_us: int, count: int, ends: Ends | None = None
) -> pl.DataFrame:
    """Inputs of the archive asked in ``[since, until)``: those with the smallest hashes of their ids, so that a second
    look at the same rows sees the same ones.

    Parameters
    ----------
    ends
        Only those before; default: all that are there.
    """

    def first(columns: list[str], wanted: pl.Expr) -> pl.DataFrame:
        names = ["prediction_id", "event_time", *columns]
        own = None if ends is None else ends["inputs"]
        scanned = archive.scan(root, "inputs", contract.model, columns=names, ends=own)
        if not scanned.collect_schema().names():
            return pl.DataFrame(schema={"prediction_id": pl.String, "event_time": pl.Int64})
        rows = scanned.filter(wanted).collect().sort("cluster", "partition", "offset")
        return rows.unique("prediction_id", keep="first", maintain_order=True)

    in_time = (pl.col("event_time") >= since_us) & (pl.col("event_time") < until_us)
    ids = archive.retried(partial(first, [], in_time))
    chosen = ids.sort(pl.col("prediction_id").hash(SEED), "prediction_id").head(count)["prediction_id"]
    names = list(contract.feature_names)
    rows = archive.retried(partial(first, names, in_time & pl.col("prediction_id").is_in(chosen.to_list())))
    missing = [pl.lit(None).alias(name) for name in names if name not in rows.columns]
    rows = rows.with_columns(missing).sort("event_time", "prediction_id")
    return rows.select("prediction_id", "event_time", *feature_columns(contract))


def recompute(rows: pl.DataFrame, policy: ParityPolicy, folder: Path) -> pl.DataFrame:
    """What the function of training gives for these rows.

    Parameters
    ----------
    folder
        Where its module may stand: that of flywheel.toml.

    Raises
    ------
    ParityError
        If it raises, ends its process, takes too long or too much memory, or gives something else than features.
    """
    with tempfile.TemporaryDirectory(prefix="flywheel-parity-") as name:
        place = Path(name)
        rows.write_parquet(place / ROWS)
        spec = {"function": policy.function, "memory_limit_bytes": policy.memory_limit_mb << 20}
        (place / "spec.json").write_text(json.dumps(spec))
        code = _run(place, policy.time_limit_s, folder)
        if (place / ERROR).exists():
            raise ParityError(f"{policy.function} failed: {json.loads((place / ERROR).read_text())}")
        if code is None:
            raise ParityError(f"{policy.function} took longer than {policy.time_limit_s:g} s.")
        if code:
            ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            tail = (place / LOG).read_text(errors="replace")[-LOG_TAIL_CHARS:].strip()
            raise ParityError(f"The process of {policy.function} {ended}: {tail or 'it said nothing'}")
        return pl.read_parquet(place / FEATURES)


def _run(place: Path, limit_s: float, folder: Path) -> int | None:
    """The exit code of the subprocess; None: it was killed because its time was over."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (place / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "retrain.parity", str(place)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": path},
        )  # fmt: skip
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def compare(rows: pl.DataFrame, given: pl.DataFrame, contract: Contract) -> Parity:
    """Served rows beside what was recomputed of them.

    Raises
    ------
    ParityError
        If a recomputed column cannot be of the contract's type.
    """
    fields = [field for field in contract.fields if field.name in given.columns]
    try:
        casts = [pl.col(field.name).cast(KIND_TYPES[field.kind]) for field in fields]
        known = given.select(pl.col("prediction_id").cast(pl.String), *casts)
    except pl.exceptions.PolarsError as error:
        raise ParityError(f"What it gave is not of the contract's types: {str(error).splitlines()[0]}") from error
    known = known.rename({field.name: f"@{field.name}" for field in fields})
    both = rows.join(known, on="prediction_id", how="inner", maintain_order="left")
    found = [_compared(both, field) for field in fields]
    found.sort(key=lambda each: (-each.beyond, each.exact_share, each.feature))
    absent = tuple(field.name for field in contract.fields if field not in fields)
    return Parity(rows.height, both.height, tuple(found), absent)


def _compared(both: pl.DataFrame, field: Field) -> FeatureParity:
    served, again = pl.col(field.name), pl.col(f"@{field.name}")
    is_exact = served.eq_missing(again)  # not-a-number equals itself here
    gap = pl.lit(float("inf"))
    allowed = pl.lit(0.0)
    if field.kind == "number":
        gap = (served - again).abs().fill_null(float("inf")).fill_nan(float("inf"))
        allowed = pl.max_horizontal(pl.lit(field.tolerance), field.relative_tolerance * again.abs())
        allowed = allowed.fill_null(0.0).fill_nan(0.0)
    judged = both.select(
        "prediction_id", "event_time", served=served, recomputed=again,
        is_exact=is_exact, is_beyond=~is_exact & ((gap > allowed) | gap.is_infinite()), gap=gap,
    )  # fmt: skip
    differing = judged.filter(~pl.col("is_exact")).sort("gap", descending=True, maintain_order=True).head(EXAMPLES)
    examples = differing.select("prediction_id", "event_time", "served", "recomputed").to_dicts()
    exact, beyond = int(judged["is_exact"].sum()), int(judged["is_beyond"].sum())
    return FeatureParity(field.name, both.height, exact, beyond, tuple(examples))


def check(
    root: Path,
    contract: Contract,
    policy: ParityPolicy,
    since_us: int,
    until_us: int,
    folder: Path,
    ends: Ends | None = None,
) -> Parity:
    """Sample, recompute and compare; see :func:`sample_rows` and, for errors, :func:`recompute`."""
    if policy.function is None:
        raise NoParityError(
            f"No feature code is registered for '{contract.model}'.",
            action=f'Name it in flywheel.toml: [models.{contract.model}.parity] function = "module:function".',
        )
    rows = sample_rows(root, contract, since_us, until_us, policy.sample, ends)
    if not rows.height:
        return Parity(0, 0, (), contract.feature_names)
    return compare(rows, recompute(rows, policy, folder), contract)


def _called(name: str, rows: pl.DataFrame) -> pl.DataFrame:
    module, _, function = name.partition(":")
    given = getattr(importlib.import_module(module), function)(rows)
    if not isinstance(given, pl.DataFrame) or "prediction_id" not in given.columns:
        raise TypeError(f"it gave {type(given).__name__}, and not a polars DataFrame with a column prediction_id")
    if given["prediction_id"].null_count() or given["prediction_id"].is_duplicated().any():
        raise ValueError("a prediction_id is null, or stands in several rows")
    return given


def main(place: Path) -> int:
    """The subprocess: call the function; what it raises goes to a file."""
    spec = json.loads((place / "spec.json").read_text())
    confine(spec["memory_limit_bytes"])
    try:
        _called(spec["function"], pl.read_parquet(place / ROWS)).write_parquet(place / FEATURES)
    except MemoryError:
        (place / ERROR).write_text(json.dumps(f"it needed more than {spec['memory_limit_bytes'] >> 20} MB"))
    except Exception as error:  # the user's own, whatever it is
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        (place / ERROR).write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
