"""The digits demo: pictures whose truth comes only from a person.

scikit-learn's 1,797 pictures of handwritten digits, 8 x 8 pixels of 0 to 16. The first champion has never seen a 3 or
an 8, so a fifth of what it is asked is beyond it; simulated users press "wrong" on most of its errors, and the person
at the keyboard says what the picture is. Pure but for reading the file that scikit-learn ships; imports it only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.contract import Contract, load_contract
from schemas.times import HOUR_US, MINUTE_US, SECOND_US, parse_time
from streams.demo.events import FEEDBACK_COLUMNS, Batch, batches

MODEL = "digits"
CONTRACT_FILE = Path(__file__).with_name("digits.avsc")
SIDE = 8
INK_MAX = 16
FEATURES = tuple(f"p{row}{column}" for row in range(SIDE) for column in range(SIDE))
LABELS = tuple("0123456789")

UNSEEN = ("3", "8")
DRAWN_ROWS, STREAM_ROWS, TEST_ROWS = 400, 800, 500
"""Of the drawn rows the champion learns from those that show no 3 and no 8."""
TRAINER_PARAMETERS: Final[dict[str, float]] = {"C": 1.0}
"""Of scikit-learn's LogisticRegression, on ink as a share of its maximum."""

STREAM_FROM = parse_time("2026-01-05T09:00:00+00:00")
ASK_EVERY_US = 30 * SECOND_US
FLAG_AFTER_US = 20 * SECOND_US
"""How long a simulated user looks at an answer before pressing the button."""
FLAGGED_OF_WRONG, FLAGGED_OF_RIGHT = 0.6, 0.01

FAILURE_RULES: Final[dict[str, str]] = {"user_said_wrong": "user = 'wrong'"}

HALF_BLOCKS = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
SHADES = {"shade": " ░▒▓█", "plain": " .:-=+*#%@"}

Style = Literal["shade", "half", "plain"]


@dataclass(frozen=True)
class Split:
    """One cut of the digits: frames of ``prediction_id``, the pixels and ``label``, and the mood of each user.

    Attributes
    ----------
    train, stream, test
        What the champion learns from, what is asked of it, and what its quality is measured on.
    moods
        One uniform number a stream row: the user presses "wrong" when it lies below the chance of it. Drawn once, so a
        better champion meets the same users.
    """

    seed: int
    train: pl.DataFrame
    stream: pl.DataFrame
    test: pl.DataFrame
    moods: NDArray[np.float64]


@cache
def load_digits() -> pl.DataFrame:
    """All digits: ``prediction_id`` ("digit-0007" is the eighth), 64 pixels row by row, ``label``."""
    from sklearn.datasets import load_digits as read

    pixels, labels = read(return_X_y=True)
    return pl.DataFrame(
        {
            "prediction_id": [f"digit-{i:04d}" for i in range(len(labels))],
            **{name: pixels[:, i].astype(np.int64) for i, name in enumerate(FEATURES)},
            "label": [str(label) for label in labels],
        }
    )


def contract() -> Contract:
    """The contract of the model, version 1."""
    return load_contract(CONTRACT_FILE)


def split(seed: int = 0) -> Split:
    """Cut the digits by chance: the first 400 without 3 and 8 to learn, then 800 to serve, then 500 to test."""
    digits, rng = load_digits(), np.random.default_rng(seed)
    order = rng.permutation(digits.height)
    drawn, served = DRAWN_ROWS, DRAWN_ROWS + STREAM_ROWS
    train = digits[order[:drawn]].filter(~pl.col("label").is_in(UNSEEN))
    stream, test = digits[order[drawn:served]], digits[order[served : served + TEST_ROWS]]
    return Split(seed, train, stream, test, rng.random(STREAM_ROWS))


def true_label(prediction_id: str) -> str:
    """What the picture shows, from its id.

    >>> true_label("digit-0007")
    '7'
    """
    labels: pl.Series = load_digits()["label"]
    return str(labels[int(prediction_id.removeprefix("digit-"))])


def ink(rows: pl.DataFrame) -> NDArray[np.float64]:
    """The pixels as shares of full ink: what the model learns from."""
    return np.asarray(rows.select(FEATURES).to_numpy(), dtype=np.float64) / INK_MAX


def user_flags(cut: Split, predicted: Mapping[str, str] | Sequence[str]) -> pl.DataFrame:
    """What the simulated users press on the champion's answers: feedback rows of label ``wrong``, in event order.

    Parameters
    ----------
    cut
        The split whose stream was answered.
    predicted
        An answer for each row of the stream, or some by prediction id; a row without an answer has no flag.
    """
    ids = cut.stream["prediction_id"].to_list()
    answers = dict(predicted) if isinstance(predicted, Mapping) else dict(zip(ids, predicted, strict=True))
    rows = [
        (f"{name}/user", name, asked + FLAG_AFTER_US, "wrong")
        for name, asked, truth, mood in zip(ids, _asked_at(cut), cut.stream["label"], cut.moods, strict=True)
        if name in answers and mood < (FLAGGED_OF_RIGHT if answers[name] == truth else FLAGGED_OF_WRONG)
    ]
    return pl.DataFrame(rows, schema=_FEEDBACK_SCHEMA, orient="row")


_FEEDBACK_SCHEMA = dict(zip(FEEDBACK_COLUMNS, (pl.String, pl.String, pl.Int64, pl.String), strict=True))


def _asked_at(cut: Split) -> list[int]:
    return [STREAM_FROM + i * ASK_EVERY_US for i in range(cut.stream.height)]


def demo_events(cut: Split, *, step_us: int = 10 * MINUTE_US) -> Iterator[Batch]:
    """The stream as batches of inputs; there are no truths, for those come from :func:`user_flags` and from people."""
    assert HOUR_US % step_us == 0, "steps must fit windows"
    due = pl.lit(None, dtype=pl.Int64).alias("truth_due")
    asked = pl.Series("event_time", _asked_at(cut))
    inputs = cut.stream.with_columns(asked, due).select("prediction_id", "event_time", "truth_due", *FEATURES)
    return batches(inputs, pl.DataFrame(schema=_FEEDBACK_SCHEMA), step_us)


def picture(features: Mapping[str, float], style: Style = "shade") -> str:
    """The digit for a terminal, in characters alone and without colour.

    Parameters
    ----------
    features
        The 64 pixels by name.
    style
        ``shade``: two characters a pixel, 16 x 8; grey levels show the holes that a threshold fills. ``half``: half
        blocks, two pixels above each other a character, 8 x 4, for lists. ``plain``: as ``shade``, but in ASCII.
    """
    rows = [[float(features[f"p{row}{column}"]) for column in range(SIDE)] for row in range(SIDE)]
    if style == "half":
        black = [[v > INK_MAX / 2 for v in row] for row in rows]
        pairs = zip(black[::2], black[1::2], strict=True)
        return "\n".join("".join(HALF_BLOCKS[pair] for pair in zip(*two, strict=True)).rstrip() for two in pairs)
    shades = SHADES[style]
    return "\n".join("".join(shades[_level(v, len(shades))] * 2 for v in row).rstrip() for row in rows)


def _level(value: float, levels: int) -> int:
    """Which of so many shades; ink outside the contract is shown as none or as full."""
    return min(max(round(value / INK_MAX * (levels - 1)), 0), levels - 1)
