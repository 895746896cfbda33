"""Kills workers, brokers and databases under load, and compares everything that is left with the oracle.

`make chaos` (five million events, a hundred kills) or `python -m tests.chaos.run --short`. Real Apache Kafka behind
a proxy, real PostgreSQL, whole workers. It prints a table and writes it as JSON; any difference makes it fail.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemas.registry import Codec, FileRegistry
from streams.config import Config
from streams.kafka import cluster_id, create_topics
from streams.plane.horizon import kept_s
from streams.testing import KafkaServer, PostgresServer, ServerMissingError, TcpProxy, free_port, wait_until
from streams.testing.effects import Effects, Expected, Log, Tally, expect_all, topic_tallies
from streams.testing.outputs import OutputReader, Outputs
from streams.testing.worker import ROOT, configure, settle
from streams.testing.world import World
from tests.chaos.disk import may_mount
from tests.chaos.faults import Arena, plan
from tests.chaos.review import Reviewer
from tests.chaos.workers import Worker

PARTITIONS = 4
SESSION_MS = 5_000
SETTINGS = {
    "group.consumer.min.session.timeout.ms": str(SESSION_MS),
    "group.consumer.session.timeout.ms": str(SESSION_MS),
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "500",
}
HORIZON_S = 960
"""So short that segments are cut at epochs (of 120 s) in the middle of it all; a truth may be 900 s late."""
ENDS_MAX = 10
"""Workers that end by themselves more often are started in vain."""
DISK_BYTES = 768 * 1024 * 1024
FULL = {"predictions": 1_400_000, "kills": 100, "seconds": 900.0}
SHORT = {"predictions": 200_000, "kills": 20, "seconds": 100.0}
REFUSALS = ("Error: No Kafka broker answers", "Error: The database", "Unable to bootstrap from", "CallState_get")
"""What a worker says that ends because the broker or the database is away; it is started again. The last are Faust's,
at its start, and an assertion of confluent-kafka's, when a broker goes in the middle of a request."""
SETTLE_DEADLINE_S = 1_200.0
LOOK_S = 0.1
RAGE_MAX_S = 4 * 3_600.0
"""The full form takes some twenty minutes on two cores."""
SAY_S = 20.0


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    predictions: int
    kills: int
    seconds: float
    workers: int
    segment_records: int


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--short", action="store_true", help="200,000 predictions and 20 kills, as in the tests")
    parser.add_argument("-n", "--predictions", type=int, help="how many (1,400,000: five million events)")
    parser.add_argument("--kills", type=int, help="kill -9 and SIGSTOP of workers (100)")
    parser.add_argument(
        "--seconds", type=float, help="about how long that takes, when the machine is fast enough (900)"
    )
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--segment-records", type=int, default=4_096)
    parser.add_argument("--seed", type=int, help="of the events and of what goes wrong; default: a new one")
    parser.add_argument("--json", type=Path, default=Path("chaos.json"), help="where the result goes")
    parser.add_argument("--keep", type=Path, help="an empty folder for logs and state, which stays")
    given = parser.parse_args(argv)
    for name, value in (SHORT if given.short else FULL).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def workers_of(folder: Path, size: Size, *, can_fill: bool) -> Iterator[list[Worker]]:
    """Workers, gone at the end whatever happens."""
    started: list[Worker] = []
    try:
        for number in range(size.workers):
            started.append(Worker(folder, number, DISK_BYTES if can_fill else None))
        yield started
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.wait()


@contextmanager
def sender(kafka: KafkaServer, registry: Path, seed: int, size: Size) -> Iterator[subprocess.Popen[str]]:
    """The process that sends all events."""
    what = {"bootstrap": kafka.bootstrap, "registry": str(registry), "seed": seed, "predictions": size.predictions}
    command = [sys.executable, "-m", "tests.chaos.send", json.dumps(what)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def by_themselves(arena: Arena) -> list[str]:
    """Last words of the workers that ended although all servers were there."""
    return [text for text in arena.ended if not any(words in text for words in REFUSALS)]


def rage(arena: Arena, kinds: Sequence[str], process: subprocess.Popen[str], mean_s: float) -> None:
    """Carry out the plan; events flow along with it, however fast this machine is.

    Parameters
    ----------
    mean_s
        Between one thing and the next.
    """
    stdin, waiting = process.stdin, list(kinds)
    assert stdin is not None
    said = time.monotonic()
    due = said + arena.chance.expovariate(1 / mean_s)

    def is_over() -> bool:
        nonlocal said, due
        now = time.monotonic()
        if waiting and now >= due and arena.try_to(waiting[0], now - due):
            waiting.pop(0)
            due = time.monotonic() + arena.chance.expovariate(1 / mean_s)
        arena.look()
        if len(by_themselves(arena)) > ENDS_MAX:
            raise RuntimeError(f"workers end by themselves: {by_themselves(arena)[-1]}")
        if process.poll() is None:
            stdin.write(f"{1 - len(waiting) / (len(kinds) + 1) if waiting else 1}\n")
            stdin.flush()
        if now - said >= SAY_S:
            said = now
            say(f"{dict(arena.done)}, {len(arena.ended)} ended by themselves, {len(waiting)} things to come")
        return not waiting and process.poll() is not None and arena.is_calm

    wait_until(is_over, RAGE_MAX_S, "that all was done and sent", LOOK_S)
    if process.returncode:
        raise RuntimeError("the events could not be sent")


def compare(config: Config, log: Log, expected: dict[int, Expected], reviewer: Reviewer) -> list[Tally]:
    """Everything that is left against everything that is expected."""
    codec = Codec(FileRegistry(log.registry))
    reader = OutputReader(log.bootstrap, PARTITIONS, Outputs(codec))
    reader.read_to_end()
    reader.close()
    effects = Effects(reviewer.engine, codec, log, expected)
    command = [sys.executable, "-m", "streams.cli", "status", "--json", "--brokers", log.bootstrap]
    told = subprocess.run(
        command, cwd=config.root, env=reviewer.environment, capture_output=True, text=True, check=True
    )
    return [
        *topic_tallies(reader.outputs, expected),
        *effects.tallies(),
        effects.status(json.loads(told.stdout)),
        *reviewer.tallies(log.bootstrap, PARTITIONS),
    ]


def run(folder: Path, size: Size, seed: int, *, can_fill: bool) -> dict[str, Any]:
    """One run; its result."""
    chance = random.Random(seed)
    (folder / ".flywheel").mkdir()
    registry = folder / ".flywheel" / "registry.json"
    world = World(FileRegistry(registry), calm=True)
    began = time.monotonic()
    with ExitStack() as stack:
        port = free_port()
        kafka = stack.enter_context(KafkaServer(settings=SETTINGS, advertised_port=port))
        proxy = stack.enter_context(TcpProxy(kafka.behind_port, port))
        postgres = stack.enter_context(PostgresServer())
        create_topics(kafka.bootstrap, PARTITIONS, kept_s(HORIZON_S))
        given: dict[str, Any] = {"segment_records": size.segment_records, "join_horizon_s": HORIZON_S}
        config = configure(folder, world, f"127.0.0.1:{port}", database=postgres.database("chaos"), **given)
        cluster = cluster_id(kafka.bootstrap)
        log = Log(kafka.bootstrap, cluster, registry, config.archive_dir, partitions=PARTITIONS, **given)
        reviewer = stack.enter_context(Reviewer(config, world))
        workers = stack.enter_context(workers_of(folder, size, can_fill=can_fill))
        arena = Arena(chance, kafka, postgres, proxy, workers)
        kinds = plan(chance, size.kills, can_fill=can_fill)
        with sender(kafka, registry, chance.randrange(1 << 30), size) as process:
            rage(arena, kinds, process, size.seconds / len(kinds))
        raged_s = time.monotonic() - began
        say(f"{raged_s:5.0f} s: all was sent, nothing goes wrong any more; waiting until all is done")
        reviewer.stop()
        settle(config, kafka.bootstrap, PARTITIONS, SETTLE_DEADLINE_S, arena.look)
        for worker in workers:  # all at once: whoever inherited a partition would forward misplaced records again
            worker.tell_to_end()
        codes = [worker.end() for worker in workers]
        say("computing what must be there")
        expected = expect_all(log, PARTITIONS)
        settled_s = time.monotonic() - began
        say(f"{settled_s:5.0f} s: settled; comparing")
        tallies = compare(config, log, expected, reviewer)
        tallies.append(
            Tally.of("workers that stopped in order", dict(enumerate(codes)), dict.fromkeys(range(size.workers), 0))
        )
    events = sum((each.kinds for each in expected.values()), Counter[str]())
    return {
        "seed": seed,
        "size": asdict(size),
        "events": dict(events),
        "faults": dict(arena.done) | ({} if can_fill else {"full disk": "not possible here: no mount"}),
        "told of a full disk": sum(worker.told("join_store_not_saved") for worker in workers),
        "starts refused": len(arena.ended) - len(by_themselves(arena)),
        "ended by themselves": by_themselves(arena),
        "seconds": {"raged": round(raged_s), "settled": round(settled_s)},
        "comparisons": [asdict(tally) for tally in tallies],
        "differences": sum(tally.differ for tally in tallies),
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    faults, events, size = result["faults"], result["events"], result["size"]
    lines = [
        f"chaos, seed {result['seed']}: {size['predictions']:,} predictions, {size['workers']} workers, "
        f"{result['seconds']['raged']} s, settled after {result['seconds']['settled']} s",
        "",
        f"kills of workers                {faults['kill'] + faults['stop']:>9,}",
        f"  kill -9                       {faults['kill']:>9,}",
        f"  stopped past the session      {faults['stop']:>9,}",
    ]
    names = {
        "broker": "restarts of the broker", "database": "restarts of the database", "full disk": "full disks",
        "delay": "slow network", "cut": "connections cut", "halve": "connections half open",
    }  # fmt: skip
    lines += [f"{words:<32}{faults.get(kind, 0):>9}" for kind, words in names.items()]
    lines += [f"{'starts while a server was away':<32}{result['starts refused']:>9,}"]
    lines += [f"{'workers that ended by themselves':<32}{len(result['ended by themselves']):>9,}", ""]
    total = sum(events[noun] for noun in ("inputs", "predictions", "feedback"))
    lines += [f"{'events':<32}{total:>9,}", *(f"  {kind:<30}{n:>9,}" for kind, n in events.items()), ""]
    lines += [f"{'compared with the oracle':<36}{'expected':>10}{'found':>10}{'different':>11}"]
    lines += [
        f"{each['what']:<36}{each['expected']:>10,}{each['found']:>10,}{each['differ']:>11,}"
        for each in result["comparisons"]
    ]
    lines += [f"  {text[:300]}" for each in result["comparisons"] for text in each["examples"]]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments(argv)
    can_fill = may_mount()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    say(f"seed {seed}")
    size = Size(given.predictions, given.kills, given.seconds, given.workers, given.segment_records)
    try:
        if given.keep is not None:
            given.keep.mkdir(parents=True, exist_ok=True)
            result = run(given.keep.resolve(), size, seed, can_fill=can_fill)
        else:
            with tempfile.TemporaryDirectory(prefix="flywheel-chaos-", ignore_cleanup_errors=True) as folder:
                result = run(Path(folder), size, seed, can_fill=can_fill)
    except ServerMissingError as error:
        say(str(error))
        return 2
    given.json.write_text(json.dumps(result, indent=1))
    print(table(result))
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
