"""How the plane's cost grows: CPU seconds by the number of predictions, and by the number of features.

Both must be straight lines: twice the slope at the end would be a cost that is not linear. Saved as SVG in ``docs/``.
"""

from __future__ import annotations

from pathlib import Path

from tests.bench.events import USUAL, Shape
from tests.bench.plot import bend, plot
from tests.bench.trial import Result
from tests.bench.workers import catch_up

DOCS = Path(__file__).resolve().parents[2] / "docs"
PARTITIONS = 4
DATA, DATA_SMALL = (62_500, 250_000, 1_000_000), (2_000, 4_000, 8_000)
FEATURES, FEATURES_SMALL = (10, 30, 100, 250, 500), (10, 30, 100)
VALUES, VALUES_SMALL = 20_000_000, 60_000
PREDICTIONS_MAX = 400_000
"""By features, each point is of as many values as the others, or of so many predictions: of fewer, the narrow ones took
some tenths of a second, and the slope between them was noise."""
SHARE_OF_NUMBERS = 0.6


def run(*, is_small: bool) -> Result:
    data, features, values = (DATA_SMALL, FEATURES_SMALL, VALUES_SMALL) if is_small else (DATA, FEATURES, VALUES)
    by_data = [(float(count), cpu(count, USUAL)) for count in data]
    by_features = []
    for number in features:
        shape = Shape(round(number * SHARE_OF_NUMBERS), number - round(number * SHARE_OF_NUMBERS))
        count = min(PREDICTIONS_MAX, values // number)
        by_features.append((float(number), cpu(count, shape) * 1e6 / count))
    if not is_small:
        DOCS.mkdir(exist_ok=True)
        title = "CPU of the plane by amount of data"
        (DOCS / "growth-data.svg").write_text(plot(by_data, title, "predictions, each with input and truth", "CPU s"))
        title = "CPU of the plane by number of features"
        svg = plot(by_features, title, "features (3 of 5 numbers, the others categories)", "CPU s per million")
        (DOCS / "growth-features.svg").write_text(svg)
    figures: dict[str, float] = {f"{count:,.0f} predictions: CPU s": round(cost, 2) for count, cost in by_data}
    figures |= {f"{number:g} features: CPU s per million": round(cost, 1) for number, cost in by_features}
    figures["slope at the end / at the beginning, data"] = round(bend(by_data), 2)
    figures["slope at the end / at the beginning, features"] = round(bend(by_features), 2)
    return Result(figures, {name: 1.5 for name in figures if name.startswith("slope")})


def cpu(count: int, shape: Shape) -> float:
    """CPU seconds of a plane for so many predictions of a shape."""
    cpu_s, _, _ = catch_up(1, count, PARTITIONS, shape)
    return cpu_s
