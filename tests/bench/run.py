"""Benchmarks on Apache Kafka and on the embedded broker: `make bench`.

Every benchmark runs in a process of its own on a broker that already holds all events, so what is measured is a
catch-up read. Only ratios within one run mean anything: machines differ, and so do their other loads.

A trial has brokers (Apache Kafka), planes and a producer of its own, and figures with a target each.

    make bench                                 everything (half an hour), a table, and bench.json
    make bench ARGS="--only pending,delay"     some trials
    make bench ARGS="--only bare,plane -n 200000 --brokers kafka"
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from schemas.events import NOUNS, topic
from streams.broker import EmbeddedBroker
from streams.testing import KafkaServer, ServerMissingError, create_topics
from tests.bench.events import produce
from tests.bench.job import Job, Measured
from tests.bench.trial import Result

ROOT = Path(__file__).resolve().parents[2]
PREDICTIONS_MIN = 5_000
EMBEDDED_PREDICTIONS_MAX = 100_000  # the embedded broker keeps 5 MiB a partition: 174 bytes an input, 4 partitions
DEADLINE_S = 1_800


@dataclass(frozen=True)
class Benchmark:
    """A module of this folder with a function `run(job: Job) -> Measured`.

    `share` of the predictions is what it gets: a slow peer would take all day on all of them.
    """

    name: str
    share: float = 1.0
    repeat: bool = True


BENCHMARKS = (
    Benchmark("bare"),
    Benchmark("plane"),
    Benchmark("faust_river", share=0.02, repeat=False),
)

TRIALS = ("pending", "burst", "delay", "responsive", "workers", "growth", "edetector")
"""Modules of this folder with a function ``run(*, is_small: bool) -> Result``."""
NAMES = (*(benchmark.name for benchmark in BENCHMARKS), *TRIALS)


@contextmanager
def broker(kind: str) -> Iterator[str]:
    """A broker with empty topics; its address."""
    names = [*(topic(noun) for noun in NOUNS), "bench.failures"]
    if kind == "embedded":
        with EmbeddedBroker(topics=names) as embedded:
            yield embedded.bootstrap
    else:
        with KafkaServer() as kafka:
            create_topics(kafka.bootstrap, names)
            yield kafka.bootstrap


def measure(name: str, job: Job) -> Measured:
    """Run a benchmark in a process of its own."""
    one = [sys.executable, "-m", "tests.bench.run", "one", name]
    done = subprocess.run(
        one, input=job.dumps(), capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE_S, check=False
    )
    if done.returncode:
        raise click.ClickException(f"{name} failed:\n{done.stderr[-3000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def run_on(kind: str, predictions: int, benchmarks: list[Benchmark], repeat: int) -> Iterator[dict[str, Any]]:
    """Rows of the table for benchmarks that get the same events on one broker."""
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as temporary, broker(kind) as bootstrap:
        folder = Path(temporary) / "events"
        click.echo(f"{kind}: putting {predictions:,} predictions on the topics", err=True)
        made = produce(bootstrap, predictions, folder)
        job = Job(bootstrap, predictions, made["records"], str(folder), "")
        runs: dict[str, list[Measured]] = {benchmark.name: [] for benchmark in benchmarks}
        for attempt in range(repeat):
            for benchmark in benchmarks:
                if attempt and not benchmark.repeat:
                    continue
                measured = measure(benchmark.name, replace(job, group=f"bench-{benchmark.name}-{attempt}"))
                click.echo(f"{kind}: {benchmark.name} took {measured.seconds:.1f} s", err=True)
                runs[benchmark.name].append(measured)
        for name, results in runs.items():
            yield {"broker": kind, "name": name, "predictions": predictions, **made, **summary(results, predictions)}


def summary(results: list[Measured], predictions: int) -> dict[str, Any]:
    """The median run, and how far the others were from it."""
    rates = sorted(predictions / result.seconds for result in results)
    middle = sorted(results, key=lambda result: result.seconds)[len(results) // 2]
    return {
        "predictions_per_s": round(statistics.median(rates)),
        "predictions_per_s_range": [round(rates[0]), round(rates[-1])],
        "cpu_s_per_million": round(statistics.median(r.cpu_s for r in results) * 1e6 / predictions, 2),
        "is_exact": all(result.is_exact for result in results),
        "stages_us": middle.stages_us,
        "extra": middle.extra,
    }


def ratios(rows: list[dict[str, Any]]) -> None:
    """Beside each row: how many times the CPU of the bare consume on the same broker it takes."""
    for row in rows:
        floor = [r for r in rows if r["name"] == "bare" and r["broker"] == row["broker"]]
        row["cpu_of_bare"] = round(row["cpu_s_per_million"] / floor[0]["cpu_s_per_million"], 1) if floor else None


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'broker':<10}{'benchmark':<14}{'n':>10}{'predictions/s':>15}{'CPU s/million':>15}{'x bare':>8}  exact"]
    for row in rows:
        times = "" if row["cpu_of_bare"] is None else f"{row['cpu_of_bare']:.1f}"
        lines.append(
            f"{row['broker']:<10}{row['name']:<14}{row['predictions']:>10,}{row['predictions_per_s']:>15,}"
            f"{row['cpu_s_per_million']:>15.2f}{times:>8}  {'yes' if row['is_exact'] else 'NO'}"
        )
        for stage, (wall, cpu) in row["stages_us"].items():
            lines.append(f"{'':<14}{stage:<14}{wall:>12.2f} us{cpu:>12.2f} us of CPU")
    return "\n".join(lines)


def try_out(names: list[str], *, is_small: bool) -> list[dict[str, Any]]:
    """The trials' results, for the JSON file."""
    done = []
    for name in names:
        click.echo(f"trial: {name}", err=True)
        try:
            result: Result = importlib.import_module(f"tests.bench.{name}").run(is_small=is_small)
        except ServerMissingError as missing:
            click.echo(f"{name} is left out: {missing}", err=True)
            continue
        click.echo("\n".join([f"\n{name}: {'as aimed at' if result.is_met else 'NOT as aimed at'}", *result.lines()]))
        done.append({"name": name, "is_met": result.is_met, **asdict(result)})
    return done


@click.group(invoke_without_command=True)
@click.option("-n", "predictions", default=1_000_000, show_default=True, help="Predictions (2.6 records each).")
@click.option("--only", default=",".join(NAMES), show_default=True, help="Benchmarks and trials to run.")
@click.option("--brokers", default="kafka,embedded", show_default=True, help="Brokers to run them on.")
@click.option("--repeat", default=3, show_default=True, help="Runs of each; the median counts.")
@click.option("--small", "is_small", is_flag=True, help="Trials small enough to see that they work, not to measure.")
@click.option("--output", default=ROOT / "bench.json", type=click.Path(path_type=Path), help="The JSON file.")
@click.pass_context
def main(
    context: click.Context, predictions: int, only: str, brokers: str, repeat: int, is_small: bool, output: Path
) -> None:
    """Measure the data plane against its peers."""
    if context.invoked_subcommand:
        return
    known = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    names = only.split(",")
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise click.UsageError(f"No benchmark '{unknown[0]}'; there are {', '.join(NAMES)}.")
    rows: list[dict[str, Any]] = []
    for kind in brokers.split(","):
        total = min(predictions, EMBEDDED_PREDICTIONS_MAX) if kind == "embedded" else predictions
        groups: dict[int, list[Benchmark]] = {}
        for name in filter(known.__contains__, names):
            count = min(total, max(PREDICTIONS_MIN, int(predictions * known[name].share)))
            groups.setdefault(count, []).append(known[name])
        try:
            for count, benchmarks in groups.items():
                rows += run_on(kind, count, benchmarks, repeat)
        except ServerMissingError as missing:
            click.echo(f"{kind} is left out: {missing}", err=True)
    ratios(rows)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    if rows:
        click.echo(table(rows))
    trials = try_out([name for name in names if name in TRIALS], is_small=is_small)
    output.write_text(json.dumps({"machine": machine, "rows": rows, "trials": trials}, indent=1) + "\n")


@main.command(hidden=True)
@click.argument("name")
def one(name: str) -> None:
    """Run one benchmark in this process; the job is on stdin, what was measured is the last line of stdout."""
    job = Job(**json.load(sys.stdin))
    measured: Measured = importlib.import_module(f"tests.bench.{name}").run(job)
    click.echo(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
