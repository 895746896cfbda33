"""A reference profile cut from the archive is the one that training would have made of the same rows."""

from __future__ import annotations

import json

import polars as pl
from click.testing import CliRunner

from retrain.testing import START_US, write_log
from schemas.profile import Profile, build_profile
from schemas.times import DAY_US
from streams.cli import cli
from streams.testing.served import World

SINCE_US, UNTIL_US = START_US + DAY_US, START_US + 4 * DAY_US
SPAN = ["--since", "2024-01-02", "--until", "2024-01-05"]


def run(world: World, *arguments: str) -> tuple[int, str]:
    got = CliRunner().invoke(cli, [*world.argv, "profile", *arguments])
    return got.exit_code, str(got.exception or got.stdout)


def test_it_is_bit_for_bit_the_profile_of_those_rows(world: World) -> None:
    out = world.root / "new.json"
    assert run(world, *SPAN, "--out", str(out))[0] == 0
    is_in = pl.col("event_time").is_between(SINCE_US, UNTIL_US, closed="left")
    served = world.rows.with_columns(score=pl.Series(world.scores)).filter(is_in).sort("event_time", "prediction_id")
    contract = world.config.model("small").contract
    label = pl.select(pl.when(served["score"] >= 0.5).then(pl.lit("late")).otherwise(pl.lit("on_time"))).to_series()
    expected = build_profile(
        served, contract.fields, model="small", fingerprint=contract.fingerprint, score=served["score"], label=label,
        labels=contract.target.labels,
    )  # fmt: skip
    assert out.read_text() == expected.to_json()


def test_it_tells_how_far_the_rows_are_from_the_reference_in_use(world: World) -> None:
    moved = world.rows.with_columns(
        pl.col("delay") + 15.0, pl.format("q{}", pl.int_range(pl.len())).alias("prediction_id"),
        pl.col("event_time") + 100 * DAY_US,
    )  # fmt: skip
    later = world.config.archive_dir
    for name in ("inputs", "predictions", "feedback"):
        for file in sorted((later / "test" / name).rglob("*.parquet")):
            file.unlink()
    write_log(later, moved, world.config.model("small").contract, world.scores)
    code, text = run(world, "--out", str(world.root / "moved.json"), "--json")
    told = json.loads(text)
    psi = {each["feature"]: each["psi"] for each in told["features"]}
    assert (code, told["rows"]) == (0, world.rows.height)
    assert psi["delay"] > 0.5 > 0.2 > psi["load"]
    assert psi["@score"] is None, "the one in use has no cells for it"


def test_of_very_many_rows_a_sample_is_taken_the_same_one_each_time(world: World) -> None:
    files = [world.root / f"{n}.json" for n in range(2)]
    for file in files:
        assert run(world, "--rows", "100", "--out", str(file))[0] == 0
    assert files[0].read_text() == files[1].read_text()
    assert Profile.from_json(files[0].read_text()).m == 100


def test_what_cannot_be_a_reference_is_refused(world: World) -> None:
    code, said = run(world, "--out", str(world.root / "profile.json"))
    assert (code, "is there already" in said) == (1, True)
    code, said = run(world, "--version", "v9", "--out", str(world.root / "none.json"))
    assert (code, "has 0 such rows of 'small'; 50 are needed" in said) == (1, True)
    assert not (world.root / "none.json").exists()
