"""Many processes at one queue: no item to two of them, no decision lost, no deadlock."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from labeling.store import LabelStore
from labeling.testing import ManualClock, new_item, small_contract
from schemas.database import open_database
from schemas.times import now_us

CLAIMER = str(Path(__file__).with_name("claimer.py"))
ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 4
ITEMS = 2_000


def start(url: str, name: str, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, CLAIMER, url, name, mode],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )


def at_once(processes: list[subprocess.Popen[str]]) -> list[list[str]]:
    """What reviewers are served, who go on when each has its first item: one could be through before all are there."""
    firsts = []
    for process in processes:
        assert process.stdout is not None
        firsts.append(process.stdout.readline().strip())
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go on\n")
        process.stdin.flush()
    return [[first, *others] for first, others in zip(firsts, served(processes), strict=True)]


def served(processes: list[subprocess.Popen[str]]) -> list[list[str]]:
    lists = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        lists.append(out.split())
    return lists


def filled(url: str, n: int) -> LabelStore:
    store = LabelStore(open_database(url), "small", contract=small_contract())
    store.ingest([new_item(i) for i in range(n)])
    return store


def test_no_item_is_served_to_two_processes(url: str) -> None:
    store = filled(url, ITEMS)
    lists = at_once([start(url, f"reviewer-{i}", "claim") for i in range(PROCESSES)])
    every = [name for served_ in lists for name in served_]
    assert len(every) == len(set(every)) == ITEMS
    store.engine.dispose()


def test_decisions_of_many_processes_make_one_whole_chain(url: str) -> None:
    store = filled(url, 200)
    lists = at_once([start(url, f"reviewer-{i}", "submit") for i in range(PROCESSES)])
    assert sorted(name for served_ in lists for name in served_) == sorted(f"p{i}/confident" for i in range(200))
    assert store.verify_chain() == 200
    assert store.stats().done == 200
    assert len(store.labels_as_of().annotations()) == 200
    store.engine.dispose()


def test_ingest_claims_and_decisions_at_once_do_not_block_each_other(url: str) -> None:
    """The items repeat with new occurrences, so that ingest updates the items that are being decided on."""
    store = filled(url, 300)
    program = (
        "import sys; from labeling.store import LabelStore; from labeling.testing import new_item;"
        "from schemas.database import open_database;"
        "store = LabelStore(open_database(sys.argv[1]), 'small');"
        "print(sum(store.ingest([new_item(i, occurrence=f'{k}') for i in range(300)]).repeated for k in range(20)))"
    )
    adding = subprocess.Popen(
        [sys.executable, "-c", program, url], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    reviewers = [start(url, f"reviewer-{i}", "submit") for i in range(2)]
    assert sorted(name for names in at_once(reviewers) for name in names) == sorted(
        f"p{i}/confident" for i in range(300)
    )
    assert served([adding]) == [["6000"]]
    assert store.verify_chain() == 300
    before = store.items(limit=1000)
    store.rebuild()
    assert store.items(limit=1000) == before
    store.engine.dispose()


def test_two_ingests_of_the_same_items_at_once_make_each_once(url: str) -> None:
    open_database(url).dispose()
    program = (
        "import sys; from labeling.store import LabelStore; from labeling.testing import new_item;"
        "from schemas.database import open_database;"
        "store = LabelStore(open_database(sys.argv[1]), 'small');"
        "print(store.ingest([new_item(i) for i in range(3000)]).added)"
    )
    command = [sys.executable, "-c", program, url]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    assert sum(int(added) for (added,) in served(processes)) == 3000
    engine = open_database(url)
    assert LabelStore(engine, "small").stats().items == 3000
    engine.dispose()


def test_the_item_of_a_killed_process_comes_back_when_its_lease_ends(url: str) -> None:
    store = filled(url, 1)
    process = start(url, "victim", "claim")
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "p0/confident"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    clock = ManualClock(now_us())
    later = LabelStore(store.engine, "small", clock=clock)
    assert later.next("heir") is None
    clock.advance(later.policy.lease_s)
    assert later.next("heir") is not None
    store.engine.dispose()
