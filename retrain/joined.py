"""The archive's three topics as one table of rows: input, what was answered, what came true.

The same rules as the data plane's join, over files instead of a stream: the first input and the first prediction of an
id count, and the last truth, in the order of broker timestamps. A row is *mature* when its truth is due, whether it
came early or not: rows whose truth happens to be in already are not like the others (of flights in the air, those that
have landed are the punctual ones).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from retrain.labels import DOUBTED, OUT_VERDICTS, LabelFacts
from schemas import archive
from schemas.contract import Contract, Target
from schemas.times import SECOND_US

Ends = Mapping[str, Mapping[tuple[str, int], int]]
"""For each noun (inputs, predictions, feedback): for each (cluster, partition) the first offset that is not in."""
NOUNS = ("inputs", "predictions", "feedback")
CHAMPION = "champion"
SEED = 0x0C7
BASE, TRUTH, UNDECIDED, ANSWER = "base", "truth", "undecided", "answer"
KIND_TYPES: dict[str, type[pl.DataType]] = {"number": pl.Float64, "category": pl.String, "boolean": pl.Boolean}


@dataclass(frozen=True)
class Span:
    """What a dataset read of one partition: offsets ``[start, end)`` and how many records of the model there were."""

    start: int
    end: int
    records: int


def archive_ends(root: Path) -> dict[str, dict[tuple[str, int], int]]:
    """How far the archive reaches now."""
    ends: dict[str, dict[tuple[str, int], int]] = {noun: {} for noun in NOUNS}
    for noun, reached in ends.items():
        for file in archive.files(root, noun):
            place = (file.cluster, file.partition)
            reached[place] = max(reached.get(place, 0), file.end)
    return ends


def label_value(label: pl.Expr, target: Target) -> pl.Expr:
    """A label as the dataset's ``y``; null for a label that the target does not know."""
    if target.kind == "binary":
        return label.replace_strict(
            {name: float(name == target.positive) for name in target.labels}, default=None, return_dtype=pl.Float64
        )
    numbers = {name: float(at) for at, name in enumerate(target.labels)}
    return label.replace_strict(numbers, default=None, return_dtype=pl.Float64)


def feature_columns(contract: Contract) -> list[pl.Expr]:
    """The contract's features in the types of a dataset."""
    return [pl.col(f.name).cast(KIND_TYPES[f.kind]) for f in contract.fields]


def _ordered(
    root: Path, noun: str, contract: Contract, columns: list[str], ends: Ends, starts: Ends, one_in: int = 1
) -> pl.DataFrame:
    """Records of a noun in the order that counts: the running maximum of broker timestamps, then the offset.

    Parameters
    ----------
    one_in
        Only ids that a hash picks, one of so many. Whose hash is picked follows from the ids alone.
    """
    reach, begin = ends.get(noun, {}), starts.get(noun, {})

    def read() -> pl.DataFrame:
        rows = archive.scan(root, noun, contract.model, columns=columns, ends=reach, starts=begin)
        if one_in > 1:
            rows = rows.filter(pl.col("prediction_id").hash(SEED) % one_in == 0)
        return rows.collect()

    frame = archive.retried(read)
    if frame.is_empty():
        return frame
    place = ["cluster", "partition"]
    return (
        frame.sort([*place, "offset"])
        .with_columns(_order=pl.col("broker_ts").cum_max().over(place))
        .sort("_order", *place, "offset", maintain_order=True)
        .drop("_order")
    )


def read_archive(
    root: Path, contract: Contract, ends: Ends, as_of_us: int, starts: Ends | None = None
) -> tuple[pl.DataFrame, dict[str, dict[str, Span]]]:
    """Joined rows as they were known at ``as_of_us``, and the spans of offsets that they come from.

    Parameters
    ----------
    ends, starts
        Offsets below which, and from which on, records are read; default: from the first.

    Returns
    -------
    Columns ``prediction_id``, ``event_time``, the features, ``served_version``, ``served_score``, ``served_label``,
    ``due_us``, ``truth_time``, ``truth_y``; one row an id, in the order of event time and id. A truth whose event time
    is after ``as_of_us`` does not exist yet.
    """
    names = list(contract.feature_names)
    wanted = {
        "inputs": ["prediction_id", "event_time", *names],
        "predictions": ["prediction_id", "event_time", "version", "role", "score", "label", "truth_due"],
        "feedback": ["feedback_id", "prediction_id", "event_time", "kind", "label", "value"],
    }
    read = {noun: _ordered(root, noun, contract, columns, ends, starts or {}) for noun, columns in wanted.items()}
    spans = {noun: _spans(frame, ends.get(noun, {})) for noun, frame in read.items()}
    if read["inputs"].is_empty():
        return _no_rows(contract), spans
    known = {
        noun: frame if frame.is_empty() else frame.filter(pl.col("event_time") <= as_of_us)
        for noun, frame in read.items()
    }
    inputs = known["inputs"].unique("prediction_id", keep="first", maintain_order=True)
    rows = inputs.select("prediction_id", "event_time", *feature_columns(contract))
    rows = rows.join(_served(known["predictions"]), on="prediction_id", how="left")
    rows = rows.join(_truths(known["feedback"], contract.target), on="prediction_id", how="left")
    timeout_s = contract.target.truth_timeout_s
    given_up = pl.lit(None, pl.Int64) if timeout_s is None else pl.col("event_time") + timeout_s * SECOND_US
    rows = rows.with_columns(due_us=pl.coalesce("due_us", given_up))
    return rows.sort("event_time", "prediction_id"), spans


def read_outcomes(root: Path, contract: Contract, ends: Ends, as_of_us: int, *, one_in: int = 1) -> pl.DataFrame:
    """What champions answered and what came true, as it was known at ``as_of_us``, without the inputs.

    Parameters
    ----------
    one_in
        Of so many ids one.

    Returns
    -------
    Columns ``prediction_id``, ``event_time`` (of the answer), ``served_label``, ``truth_time``, ``truth_y``,
    ``has_truth`` (null: none came).
    """
    asked = ["prediction_id", "event_time", "role", "label"]
    predictions = _ordered(root, "predictions", contract, asked, ends, {}, one_in)
    if predictions.is_empty():
        return predictions
    said = ["feedback_id", "prediction_id", "event_time", "kind", "label", "value"]
    feedback = _ordered(root, "feedback", contract, said, ends, {}, one_in)
    known = pl.col("event_time") <= as_of_us
    first = predictions.filter(known, role=CHAMPION).unique("prediction_id", keep="first", maintain_order=True)
    rows = first.select("prediction_id", "event_time", served_label=pl.col("label").cast(pl.String))
    truths = _truths(feedback if feedback.is_empty() else feedback.filter(known), contract.target)
    return rows.join(truths, on="prediction_id", how="left", maintain_order="left")


def _served(predictions: pl.DataFrame) -> pl.DataFrame:
    kinds: dict[str, type[pl.DataType]] = {
        "prediction_id": pl.String,
        "served_version": pl.String,
        "served_score": pl.Float64,
        "served_label": pl.String,
        "due_us": pl.Int64,
    }
    if predictions.is_empty():
        return pl.DataFrame(schema=kinds)
    first = predictions.filter(pl.col("role") == CHAMPION).unique("prediction_id", keep="first", maintain_order=True)
    return first.select(
        "prediction_id",
        served_version=pl.col("version"),
        served_score=pl.col("score").cast(pl.Float64),
        served_label=pl.col("label").cast(pl.String),
        due_us=pl.col("truth_due").cast(pl.Int64),
    )


def _truths(feedback: pl.DataFrame, target: Target) -> pl.DataFrame:
    kinds = {"prediction_id": pl.String, "truth_time": pl.Int64, "truth_y": pl.Float64, "has_truth": pl.Boolean}
    if feedback.is_empty():
        return pl.DataFrame(schema=kinds)
    truths = feedback.filter(pl.col("kind") == "truth").unique("feedback_id", keep="first", maintain_order=True)
    last = truths.unique("prediction_id", keep="last", maintain_order=True)
    y = pl.col("value").cast(pl.Float64) if target.kind == "regression" else label_value(pl.col("label"), target)
    return last.select("prediction_id", truth_time=pl.col("event_time"), truth_y=y, has_truth=pl.lit(value=True))


def _spans(frame: pl.DataFrame, ends: Mapping[tuple[str, int], int]) -> dict[str, Span]:
    found = {f"{cluster}/{partition}": Span(end, end, 0) for (cluster, partition), end in sorted(ends.items())}
    if frame.is_empty():
        return found
    for cluster, partition, start, records in (
        frame.group_by("cluster", "partition")
        .agg(pl.col("offset").min(), pl.len())
        .sort("cluster", "partition")
        .iter_rows()
    ):
        found[f"{cluster}/{partition}"] = Span(start, ends[cluster, partition], records)
    return found


def _no_rows(contract: Contract) -> pl.DataFrame:
    head = {"prediction_id": pl.String, "event_time": pl.Int64}
    features = {f.name: KIND_TYPES[f.kind] for f in contract.fields}
    served = {"served_version": pl.String, "served_score": pl.Float64, "served_label": pl.String, "due_us": pl.Int64}
    truth = {"truth_time": pl.Int64, "truth_y": pl.Float64, "has_truth": pl.Boolean}
    return pl.DataFrame(schema=head | features | served | truth)


def with_answers(rows: pl.DataFrame, contract: Contract, facts: LabelFacts, as_of_us: int) -> pl.DataFrame:
    """Add what training uses: ``@y``, ``@source``, ``@tag`` (the verdict), ``@actor``, ``@probability``, ``@is_out``.

    A person's answer goes before the truth; the truth before the label of a row whose truth is due and has not come.
    Rows that are not mature, or have no label, have a null ``@y``.
    """
    target = contract.target
    decided = pl.DataFrame(
        [(p, d.answer, d.verdict, d.actors[0], d.selection_probability) for p, d in facts.decided.items()],
        schema={
            "prediction_id": pl.String,
            "@answer": pl.String,
            "@tag": pl.String,
            "@actor": pl.String,
            "@selected": pl.Float64,
        },
        orient="row",
    )
    rows = rows.join(decided, on="prediction_id", how="left", maintain_order="left")
    is_number = target.kind == "regression"
    answer = pl.col("@answer").cast(pl.Float64, strict=False) if is_number else label_value(pl.col("@answer"), target)
    is_due = pl.col("due_us") <= as_of_us
    is_mature = pl.col("has_truth")
    if target.undecided is not None:  # when nothing decides a row but its truth, waiting longer makes it no fairer
        is_mature = is_due | (pl.col("due_us").is_null() & pl.col("has_truth"))
    unknown = pl.lit(None, pl.Float64)
    late = unknown if target.undecided is None else label_value(pl.lit(target.undecided), target)
    truth = pl.when(is_mature & (pl.col("@tag") != DOUBTED).fill_null(value=True)).then(
        pl.when(pl.col("has_truth")).then(pl.col("truth_y")).when(is_due).then(late)
    )
    is_answered = answer.is_not_null()
    source = pl.when(is_answered).then(pl.lit(ANSWER)).when(pl.col("has_truth")).then(pl.lit(TRUTH))
    return rows.with_columns(
        pl.coalesce(answer, truth).alias("@y"),
        source.otherwise(pl.lit(UNDECIDED)).alias("@source"),
        pl.when(is_answered).then(pl.col("@selected")).otherwise(1.0).alias("@probability"),
        pl.col("@tag").is_in(list(OUT_VERDICTS)).fill_null(value=False).alias("@is_out"),
    ).drop("@selected", "truth_y", "has_truth", "@answer")


def newest_event_us(root: Path, contract: Contract) -> int | None:
    """The newest event time in the model's archive: what "now" is where the past is replayed; None when it is empty."""

    def newest_of(noun: str) -> int | None:
        frame = archive.scan(root, noun, contract.model, columns=["event_time"])
        if "event_time" not in frame.collect_schema().names():
            return None
        found: int | None = frame.select(pl.col("event_time").max()).collect().item()
        return found

    newest = (archive.retried(partial(newest_of, noun)) for noun in NOUNS)
    return max((us for us in newest if us is not None), default=None)


def count_truths(root: Path, contract: Contract, ends: Ends) -> int:
    """How many truths of the model the archive holds, each feedback counted once."""

    def count() -> int:
        columns = ["feedback_id", "kind"]
        frame = archive.scan(root, "feedback", contract.model, columns=columns, ends=ends.get("feedback", {}))
        if "kind" not in frame.collect_schema().names():
            return 0
        truths = frame.filter(pl.col("kind") == "truth").select(pl.col("feedback_id").n_unique())
        return int(truths.collect().item())

    return archive.retried(count)
