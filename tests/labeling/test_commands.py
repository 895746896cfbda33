"""The real program at a real terminal, in a pipe, and from a script."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import polars as pl
import pytest

from labeling.errors import StaleLeaseError
from labeling.items import NewItem
from labeling.store import LabelStore
from labeling.testing import new_item, small_contract
from schemas.contract import parse_contract
from schemas.database import open_database

FLYWHEEL = str(Path(sys.executable).parent / "flywheel")
TIMEOUT_S = 60
TOML = """\
[flywheel]
state_dir = "state"

[models.small]
contract = "small.avsc"

[models.small.labeling]
owners = ["ann"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configured folder whose queue holds six shifted items and an audited one."""
    (tmp_path / "flywheel.toml").write_text(TOML)
    (tmp_path / "small.avsc").write_text(json.dumps(small_contract().document))
    store = store_of(tmp_path)
    items = [new_item(i, features={"delay_known": 20.0 + i}, severity=9.0 - i) for i in range(6)]
    store.ingest([*items, new_item(9, rule="audit", selection_probability=0.01, truth="late", severity=0.01)])
    store.engine.dispose()
    return tmp_path


def store_of(folder: Path) -> LabelStore:
    engine = open_database(f"sqlite:///{folder / 'state' / 'flywheel.db'}")
    return LabelStore(engine, "small", contract=small_contract())


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    return kept | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | more


def run(folder: Path, *arguments: str, given: str = "", code: int = 0) -> str:
    done = subprocess.run(
        [FLYWHEEL, *arguments],
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(),
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def value(folder: Path, *arguments: str, code: int = 0) -> Any:
    return json.loads(run(folder, *arguments, "--json", code=code))


def terminal(folder: Path, *arguments: str, **more: str) -> pexpect.spawn[str]:
    return pexpect.spawn(
        FLYWHEEL,
        ["review", *arguments],
        cwd=str(folder),
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=TIMEOUT_S,
        env=environment(**more),
    )


def test_five_keys_make_a_proposal_and_the_sixth_accepts_it(folder: Path) -> None:
    child = terminal(folder, "--reviewer", "ann", NO_COLOR="1")
    for i in range(5):
        child.expect(r"\+1[67]|\+\d\d")
        child.expect("> ")
        child.send("2")
        child.expect(rf"meaning_changed: p{i}")
    child.expect("contract version for")
    child.expect("Accept it")
    child.send("y")
    child.expect("Accepted")
    child.expect("> ")
    child.send("q")
    child.expect("5 decisions")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    (made,) = value(folder, "labels", "proposals", "list")
    assert made["state"] == "accepted"
    store = store_of(folder)
    assert store.stats().leased == 0, "the card on the screen went back to the queue"
    assert store.verify_chain() == 7
    store.engine.dispose()


def test_undo_skip_flag_note_and_help_at_the_terminal(folder: Path) -> None:
    child = terminal(folder, "--reviewer", "ben", NO_COLOR="1")
    child.expect("p0/confident")
    child.expect("> ")
    child.send("3")
    child.expect("world: p0")
    child.expect("p1/confident")
    child.send("u")
    child.expect("Taken back: submitted p0")
    child.expect("p0/confident")
    child.send("?")
    child.expect("ten deep")
    child.expect("Any key goes on")
    child.send(" ")
    child.expect("p0/confident")
    child.send("n")
    child.expect("Note")
    child.sendline("odd one")
    child.expect("p0/confident")
    child.expect("> ")
    child.send("4")
    child.expect("unpredictable: p0")
    child.expect("p1/confident")
    child.expect("> ")
    child.send("\x1b[A")  # an arrow decides nothing
    child.expect("means nothing here")
    child.expect("p1/confident")
    child.expect("> ")
    child.send(" ")
    child.expect("Why skip it")
    child.sendcontrol("c")
    child.expect("Nothing was done")
    child.expect("p1/confident")
    child.expect("> ")
    child.send(" ")
    child.expect("Why skip it")
    child.sendline("not mine")
    child.expect("skipped: p1")
    child.expect("> ")
    child.send("f")
    child.expect("What should be looked at")
    child.sendline("")
    child.expect("flagged: p2")
    child.expect("> ")
    child.sendcontrol("c")
    child.expect("3 decisions")
    child.expect(pexpect.EOF)
    store = store_of(folder)
    standing = {a.item: (a.kind, a.note) for a in store.labels_as_of().annotations()}
    assert standing == {1: ("submitted", "odd one"), 2: ("skipped", "not mine"), 3: ("flagged", "")}
    store.engine.dispose()


def test_the_screen_is_80_by_24_and_colour_is_a_choice(folder: Path) -> None:
    plain = terminal(folder, "--reviewer", "ben", NO_COLOR="1")
    plain.expect("> ")
    shown = plain.before or ""
    assert not re.search(r"\x1b\[[0-9;]*m", shown)
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown).split("\r\n")
    assert max(len(line) for line in lines) <= 80
    assert len(lines) <= 24
    plain.send("q")
    plain.expect(pexpect.EOF)
    coloured = terminal(folder, "--reviewer", "ben")
    coloured.expect("> ")
    assert re.search(r"\x1b\[[0-9;]*m", coloured.before or "")
    coloured.send("q")
    coloured.expect(pexpect.EOF)


def test_a_killed_review_loses_no_decision_and_undo_still_works(folder: Path) -> None:
    child = terminal(folder, "--reviewer", "ben")
    child.expect("> ")
    child.send("4")
    child.expect("unpredictable: p0")
    child.kill(signal.SIGKILL)
    child.expect(pexpect.EOF)
    assert value(folder, "labels", "stats")["labels"] == 1
    assert value(folder, "labels", "undo", "--reviewer", "ben")["event"]["kind"] == "undone"
    assert value(folder, "labels", "stats")["labels"] == 0


def test_review_reads_lines_from_a_pipe(folder: Path) -> None:
    text = run(folder, "review", "--reviewer", "ben", given="2 the feed moved\n5 late it is late\na\n1\nz\nq\n")
    assert "4 decisions" in text
    assert "means nothing here" in text
    store = store_of(folder)
    standing = [(a.answer, a.verdict, a.note) for a in store.labels_as_of().annotations()]
    assert standing == [
        (None, "meaning_changed", "the feed moved"),
        ("late", "truth_wrong", "it is late"),
        ("late", "truth_wrong", ""),
        (None, "input_broken", ""),
    ]
    store.engine.dispose()


def test_review_ends_at_its_limit_and_when_nothing_is_left(folder: Path) -> None:
    assert "1 decision. Thank you" in run(folder, "review", "--limit", "1", given="4\n")
    assert "Nothing is left" in run(folder, "review", given="4\n" * 20)


def test_an_owner_decides_a_proposal_not_everybody(folder: Path) -> None:
    text = run(folder, "review", "--reviewer", "ben", "--limit", "5", given="2\n" * 5)
    assert "An owner decides: flywheel labels proposals accept p" in text
    (made,) = value(folder, "labels", "proposals", "list", "--state", "open")
    name = made["proposal_id"]
    error = value(folder, "labels", "proposals", "accept", name, "--reviewer", "ben", code=1)
    assert error["error"]["type"] == "NotOwnerError"
    wrong_time = value(folder, "labels", "proposals", "accept", name, "--reviewer", "ann", "--from", "noon", code=2)
    assert "not a time" in wrong_time["error"]["message"]
    refused = value(folder, "labels", "proposals", "refuse", name, "--reviewer", "ann", "--reason", "known")
    assert (refused["state"], refused["reason"]) == ("refused", "known")
    again = value(folder, "labels", "proposals", "accept", name, "--reviewer", "ann", code=1)
    assert again["error"]["type"] == "ProposalClosedError"


def test_a_script_labels_without_a_terminal(folder: Path) -> None:
    card = value(folder, "labels", "next", "--reviewer", "bot")
    assert card["item_id"] == "p0/confident"
    assert card["differences"][0]["by"] == 17.0
    done = value(folder, "labels", "submit", card["token"], "--verdict", "meaning_changed", "--note", "seen")
    assert (done["state"], done["event"]["verdict"]) == ("done", "meaning_changed")
    stale = value(folder, "labels", "submit", card["token"], "--verdict", "world", "--note", "late words", code=1)
    assert stale["error"]["type"] == StaleLeaseError.__name__
    (kept,) = value(folder, "labels", "list", "--kept")
    assert kept["reason"] == "late words"
    card = value(folder, "labels", "next", "--reviewer", "bot", "--rule", "audit")
    assert value(folder, "labels", "skip", card["token"], "--reason", "no idea")["state"] == "open"
    assert value(folder, "labels", "undo", "--reviewer", "bot")["event"]["reverts"].startswith("small:2:")
    assert value(folder, "labels", "next", "--reviewer", "bot", "--rule", "none") is None
    assert [row["state"] for row in value(folder, "labels", "list", "--state", "done")] == ["done"]
    assert value(folder, "labels", "verify", "--rebuild") == {"events": 3, "rebuilt": 1}
    assert "whole" in run(folder, "labels", "verify")
    assert "seen" not in run(folder, "labels", "list")


def test_labels_are_exported_in_three_formats_with_the_same_rows(folder: Path) -> None:
    run(folder, "review", "--reviewer", "=cmd()", "--limit", "3", given="2 =danger\n4\na\n")
    lines = [json.loads(line) for line in run(folder, "labels", "export", "-").splitlines()]
    for ending in ("jsonl", "csv", "parquet"):
        assert value(folder, "labels", "export", f"out.{ending}")["labels"] == 3
    assert [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()] == lines
    with (folder / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table[0]["note"] == "'=danger"
    assert [row["item_id"] for row in table] == [line["item_id"] for line in lines]
    frame = pl.read_parquet(folder / "out.parquet")
    assert frame["event_id"].to_list() == [line["event_id"] for line in lines]
    assert json.loads(frame["features"][0]) == lines[0]["features"]
    assert list(frame.columns) == list(lines[0])


def test_an_export_that_fails_leaves_nothing_behind(folder: Path) -> None:
    assert "not a format" in value(folder, "labels", "export", "out.xlsx", code=2)["error"]["message"]
    assert "cannot be written" in value(folder, "labels", "export", "nowhere/out.csv", code=2)["error"]["message"]
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["labels", "next", "--model", "smal"], "Did you mean 'small'"),
        (["labels", "submit", "nonsense", "--verdict", "world"], "not a lease token"),
        (["labels", "next", "--item", "p77/confident"], "no item"),
        (["labels", "stats", "--database", "oracle://x"], "not supported"),
        (["labels", "submit", "1-1-r1"], "needs a label or a verdict"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_ends_with_2(folder: Path, arguments: list[str], message: str) -> None:
    assert message in value(folder, *arguments, code=2)["error"]["message"]


def test_a_tampered_chain_is_told(folder: Path) -> None:
    run(folder, "review", "--limit", "2", given="4\n4\n")
    store = store_of(folder)
    with store.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE label_event SET actor = 'r7' WHERE seq = 1")
        connection.commit()
    store.engine.dispose()
    assert value(folder, "labels", "verify", code=1)["error"]["type"] == "ChainBrokenError"


def test_stats_say_how_good_the_model_is_when_the_audit_allows_it(folder: Path) -> None:
    assert "nothing is reviewed yet" in run(folder, "labels", "stats")
    run(folder, "review", "--limit", "1", given="4\n")
    assert "not known" in run(folder, "labels", "stats")
    run(folder, "review", "--rule", "audit", "--limit", "1", given="4\n")
    assert "unweighted it would read 0.500" in run(folder, "labels", "stats")


def test_without_a_model_the_command_asks_for_one(tmp_path: Path) -> None:
    assert "Which model" in value(tmp_path, "labels", "stats", code=2)["error"]["message"]
    url = f"sqlite:///{tmp_path / 'x.db'}"
    assert value(tmp_path, "labels", "stats", "--model", "any", "--database", url)["items"] == 0


DIGITS = {
    "type": "record",
    "name": "Digits",
    "model": "digits",
    "target": {"kind": "multiclass", "labels": list("0123456789")},
    "fields": [{"name": f"p{i // 8}{i % 8}", "type": "long", "min": 0, "max": 16} for i in range(64)],
}


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A configured folder whose queue holds three pictures that nobody has named yet."""
    (tmp_path / "flywheel.toml").write_text('[models.digits]\ncontract = "digits.avsc"\n')
    (tmp_path / "digits.avsc").write_text(json.dumps(DIGITS))
    engine = open_database(f"sqlite:///{tmp_path / '.flywheel' / 'flywheel.db'}")
    pixels = [{f"p{i // 8}{i % 8}": 16 * (i % 8 == column) for i in range(64)} for column in (2, 3, 4)]
    items = [
        new_item(i, kind="answer", label="7", truth=None, facts={}, user_label="wrong", severity=9.0 - i)
        for i in range(3)
    ]
    store = LabelStore(engine, "digits", contract=parse_contract(DIGITS))
    store.ingest([NewItem(**(vars(item) | {"features": shown})) for item, shown in zip(items, pixels, strict=True)])
    engine.dispose()
    return tmp_path


def test_a_picture_is_named_by_its_own_key(digits: Path) -> None:
    child = terminal(digits, "--reviewer", "ann", NO_COLOR="1")
    child.expect(r"\|    ██          \|")
    child.expect("0-9 the digit")
    child.expect("> ")
    child.send("1")
    child.expect("1: p0")
    child.expect("> ")
    child.send("a")
    child.expect("7: p1")
    child.expect("> ")
    child.send("x")
    child.expect("input_broken: p2")
    child.expect("Nothing is left")
    child.expect(pexpect.EOF)
    rows = value(digits, "labels", "list")
    assert [(row["answer"], row["verdict"]) for row in rows] == [("1", None), ("7", None), (None, "input_broken")]


def test_a_terminal_without_unicode_gets_an_ascii_picture(digits: Path) -> None:
    child = terminal(digits, NO_COLOR="1", PYTHONIOENCODING="ascii")
    child.expect(r"\|    ##          \|")
    child.send("q")
    child.expect(pexpect.EOF)
