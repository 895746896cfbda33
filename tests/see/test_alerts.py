"""Incidents on the command line, and people who are told: at least once, under one id, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from schemas.database import read, write
from schemas.errors import ConfigError
from schemas.times import HOUR_US
from streams.cli import cli
from streams.config import load_config
from streams.notify import queue
from streams.notify.policy import NotifierConfig
from streams.notify.send import Sender
from streams.raised import keep_alert
from streams.tables import notification, outbox
from streams.testing.served import TOML, World

INCIDENT = "small-20240506T06Z"
OPENED_US = 1_714_975_200_000_000


def record(number: int = 0, *, state: str = "opened", **more: Any) -> dict[str, Any]:
    """An alert event of one incident."""
    found = {
        "alert_id": f"{INCIDENT}/drift/f{number}" if state != "closed" else f"{INCIDENT}/closed",
        "incident_id": INCIDENT, "model": "small", "version": "v1", "event_time": OPENED_US + number * HOUR_US,
        "severity": "page", "state": state, "channel": "drift", "subject": f"f{number}", "slice": "all",
        "window_start": OPENED_US - HOUR_US, "window_end": OPENED_US, "topic": "flywheel.inputs.v1", "partition": 1,
        "offset": 17, "message": f"The field f{number} moved.", "detail": json.dumps({"impact": 0.25}),
    }  # fmt: skip
    return found | more


def notifier(**given: Any) -> NotifierConfig:
    return NotifierConfig.model_validate(given)


class Receiver:
    """An HTTP server that answers as told and remembers what it got."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, dict(self.headers), body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Not to stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/secret-path"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


def keep(world: World, notifiers: dict[str, NotifierConfig], *records: dict[str, Any]) -> None:
    for each in records:
        with write(world.engine) as connection:
            keep_alert(connection, each, notifiers)


def send(world: World, notifiers: dict[str, NotifierConfig]) -> int:
    return sum(asyncio.run(Sender(world.engine, name, each)()) for name, each in notifiers.items())


def states(world: World) -> dict[tuple[str, str], str]:
    with read(world.engine) as connection:
        rows = connection.execute(sa.select(notification)).all()
    return {(row.alert_id.rpartition("/")[2], row.notifier): row.state for row in rows}


def due_now(world: World) -> None:
    with write(world.engine) as connection:
        connection.execute(sa.update(notification).values(due_us=0))


def test_each_alert_is_told_once_by_each_notifier_that_wants_it(
    bare: World, receiver: Receiver, tmp_path: Path
) -> None:
    told = {
        "hook": notifier(kind="webhook", url=receiver.url, secret="k"),
        "log": notifier(kind="file", path=tmp_path / "alerts" / "log.jsonl", severities=["warn", "page"]),
        "warnings": notifier(kind="webhook", url=receiver.url, severities=["warn"]),
        "others": notifier(kind="webhook", url=receiver.url, models=["other"]),
        "ends": notifier(kind="webhook", url=receiver.url, states=["closed"]),
    }
    keep(bare, told, record(), record(), record(1, state="extended"))
    assert send(bare, told) == 4
    assert send(bare, told) == 0
    lines = [json.loads(line) for line in (tmp_path / "alerts" / "log.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"{INCIDENT}/drift/f0", f"{INCIDENT}/drift/f1"]
    assert lines[0]["detail"]["impact"] == 0.25
    assert len(receiver.got) == 2
    for _, headers, body in receiver.got:
        said = dict(part.split("=") for part in headers["X-Flywheel-Signature"].split(","))
        assert said["v1"] == hmac.new(b"k", f"{said['t']}.".encode() + body, hashlib.sha256).hexdigest()
        assert headers["Idempotency-Key"] == json.loads(body)["id"]


def test_a_notifier_that_fails_is_asked_again_and_keeps_no_other_waiting(
    bare: World, receiver: Receiver, tmp_path: Path
) -> None:
    told = {
        "hook": notifier(kind="webhook", url=receiver.url),
        "nobody": notifier(kind="slack", url="http://127.0.0.1:9/secret"),
        "log": notifier(kind="file", path=tmp_path / "log.jsonl"),
    }
    receiver.statuses = [500]
    keep(bare, told, record())
    assert send(bare, told) == 1
    assert states(bare) == {("f0", "hook"): "waiting", ("f0", "log"): "sent", ("f0", "nobody"): "waiting"}
    assert send(bare, told) == 0, "not at once"
    due_now(bare)
    assert send(bare, told) == 1
    assert [json.loads(body)["id"] for _, _, body in receiver.got] == [f"{INCIDENT}/drift/f0"] * 2
    with read(bare.engine) as connection:
        rows = {row.notifier: row for row in connection.execute(sa.select(notification))}
    assert (rows["hook"].attempts, rows["hook"].error, rows["hook"].state) == (2, None, "sent")
    assert rows["nobody"].attempts == 2
    assert "secret" not in rows["nobody"].error


def test_after_a_day_it_is_given_up_and_said_so(bare: World) -> None:
    told = {"nobody": notifier(kind="webhook", url="http://127.0.0.1:9/")}
    keep(bare, told, record())
    with write(bare.engine) as connection:
        connection.execute(sa.update(notification).values(queued_us=0, due_us=0))
    assert send(bare, told) == 0
    assert states(bare) == {("f0", "nobody"): "failed"}


def test_a_try_of_a_process_that_died_is_repeated(bare: World, receiver: Receiver) -> None:
    told = {"hook": notifier(kind="webhook", url=receiver.url)}
    keep(bare, told, record())
    now = OPENED_US * 10
    with write(bare.engine) as connection:
        (row,) = queue.due(connection, "hook", now)
        assert queue.claim(connection, row, now)
        assert not queue.claim(connection, row, now), "another worker has it"
        assert queue.due(connection, "hook", now + 1) == []
        assert len(queue.due(connection, "hook", now + queue.BACKOFF_US[0])) == 1


def test_slack_alertmanager_and_mail_get_what_they_take(bare: World, receiver: Receiver) -> None:
    with mail_server() as (port, mails):
        told = {
            "chat": notifier(kind="slack", url=receiver.url),
            "am": notifier(kind="alertmanager", url=receiver.url),
            "mail": notifier(kind="email", url=f"smtp://127.0.0.1:{port}", sender="a@b.c", to=["d@e.f", "g@h.i"]),
        }
        keep(bare, told, record(), record(state="closed", message="It is over."))
        assert send(bare, told) == 6
    by_path: dict[str, list[Any]] = {}
    for path, _, body in receiver.got:
        by_path.setdefault(path, []).append(json.loads(body))
    chat = {message["text"]: message["attachments"][0]["text"] for message in by_path["/secret-path"]}
    assert chat == {"PAGE small: drift of f0": "The field f0 moved.", "CLOSED small: drift of f0": "It is over."}
    firing = sorted(by_path["/secret-path/api/v2/alerts"], key=lambda posted: str(posted[0]["endsAt"]), reverse=True)
    assert [len(posted) for posted in firing] == [1, 1]
    assert firing[0][0]["labels"] == firing[1][0]["labels"], "one alert there, which ends"
    assert firing[0][0]["startsAt"] == "2024-05-06T06:00:00Z"
    assert firing[1][0]["annotations"]["description"] == "It is over."
    assert len(mails) == 2
    assert all("To: d@e.f, g@h.i" in mail for mail in mails)
    assert sum("In-Reply-To:" in mail for mail in mails) == 1


def test_odd_names_arrive_everywhere_and_call_nobody(bare: World, receiver: Receiver) -> None:
    name = 'line\nZ\u00fcrich "1" <!channel> & 50%'
    odd = record(slice=f"shop={name}", message=f"shop={name} moved.", alert_id=f"{INCIDENT}/volume/{name}")
    with mail_server() as (port, mails):
        told = {
            "hook": notifier(kind="webhook", url=receiver.url + "/hook"),
            "chat": notifier(kind="slack", url=receiver.url + "/chat"),
            "mail": notifier(kind="email", url=f"smtp://127.0.0.1:{port}", sender="a@b.c", to=["d@e.f"]),
        }
        keep(bare, told, odd)
        assert send(bare, told) == 3
    assert len(mails) == 1
    posted = {path.rpartition("/")[2]: (headers, json.loads(body)) for path, headers, body in receiver.got}
    assert posted["hook"][1]["message"] == odd["message"]
    assert unquote(posted["hook"][0]["Idempotency-Key"]) == odd["alert_id"]
    chat = json.dumps(posted["chat"][1])
    assert "&lt;!channel&gt; &amp; 50%" in chat
    assert "<" not in chat


def test_a_mail_server_that_never_ends_its_answer_is_cut_off_at_the_deadline(bare: World) -> None:
    is_cut, never = threading.Event(), threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                for _ in range(100):
                    self.wfile.write(b"220-and more\r\n")
                    never.wait(0.05)
            except OSError:
                is_cut.set()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"smtp://127.0.0.1:{server.server_address[1]}"
        told = {"mail": notifier(kind="email", url=url, sender="a@b.c", to=["d@e.f"], timeout_s=0.5)}
        keep(bare, told, record())
        assert send(bare, told) == 0
        assert is_cut.wait(5), "it could send all it wanted to"
        server.shutdown()
    assert states(bare) == {("f0", "mail"): "waiting"}


@contextmanager
def mail_server() -> Iterator[tuple[int, list[str]]]:
    """The few words of SMTP that one mail takes."""
    mails: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                word = line.strip().upper()[:4]
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    text: list[bytes] = []
                    while (part := self.rfile.readline()) != b".\r\n":
                        text.append(part)
                    mails.append(b"".join(text).decode())
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
                if word == b"QUIT":
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], mails
        server.shutdown()


def run(world: World, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [*world.argv, "alerts", *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return str(done.output)


def test_an_incident_is_listed_shown_acknowledged_and_closed(bare: World) -> None:
    told = {"x": notifier(kind="webhook", url="http://127.0.0.1:9/")}
    assert "no such incidents" in run(bare, "list")
    keep(bare, told, record(), record(1, state="extended"))
    assert INCIDENT in run(bare, "list")
    shown = run(bare, "show", INCIDENT[:12])
    for text in ("page of small v1: open", "flywheel.inputs.v1-1 offset 17", "impact 0.25", "f1", "x  waiting"):
        assert text in shown
    run(bare, "ack", INCIDENT, "--who", "ann", "--note", "on it")
    keep(bare, told, record(2, state="extended"), record(state="closed"))
    assert states(bare)["f2", "x"] == "acknowledged"
    assert states(bare)["closed", "x"] == "waiting", "that it is over is told"
    assert "acknowledged by ann: on it" in run(bare, "show", INCIDENT)
    run(bare, "close", INCIDENT, "--as", "fixed", code=1)  # it closed by itself


def test_an_empty_name_is_no_incident(bare: World) -> None:
    keep(bare, {}, record())
    done = CliRunner().invoke(cli, [*bare.argv, "alerts", "show", ""])
    assert str(done.exception).startswith("No incident ''.")


def test_closing_goes_to_the_worker_with_the_verdict(bare: World) -> None:
    keep(bare, {}, record(), record(1, state="extended"))
    run(bare, "close", INCIDENT, "--as", "false-alarm", "--who", "ann", "--note", "a holiday")
    with read(bare.engine) as connection:
        (row,) = connection.execute(sa.select(outbox)).all()
    assert (row.noun, row.record["alert_id"], row.record["state"]) == ("alerts", f"{INCIDENT}/closed", "closed")
    assert json.loads(row.record["detail"]) == {"settled_as": "false_alarm", "by": "ann", "note": "a holiday"}
    keep(bare, {}, row.record)  # as the worker does
    (told,) = json.loads(run(bare, "list", "--all", "--json"))
    shown = json.loads(run(bare, "show", INCIDENT, "--json"))
    assert told["alert_count"] == shown["alert_count"] == len(shown["alerts"]) == 3
    assert told.keys() < shown.keys()
    assert (told["state"], told["verdict"], told["closed_us"]) == ("closed", "false_alarm", OPENED_US + HOUR_US)
    assert "no such incidents" in run(bare, "list")


def test_what_is_silenced_is_kept_and_not_told(bare: World) -> None:
    told = {"x": notifier(kind="webhook", url="http://127.0.0.1:9/")}
    text = run(bare, "silence", "--model", "small", "--subject", "f1", "--for", "2d", "--note", "known")
    name = text.split()[1]
    keep(bare, told, record(), record(1, state="extended"))
    assert states(bare) == {("f0", "x"): "waiting", ("f1", "x"): "silenced"}
    assert "subject f1" in run(bare, "silences")
    run(bare, "unsilence", name)
    assert "Nothing is silenced" in run(bare, "silences")
    keep(bare, told, record(3, state="extended"))
    assert states(bare)["f3", "x"] == "waiting"


def test_a_silence_that_fits_no_alert_so_far_says_so(bare: World) -> None:
    keep(bare, {}, record())
    misspelt = "No alert so far would have been silenced"
    assert misspelt not in run(bare, "silence", "--model", "small", "--subject", "f0", "--for", "1h")
    assert misspelt in run(bare, "silence", "--subject", "f00", "--for", "1h")
    assert misspelt in run(bare, "silence", "--slice", "region=nrth", "--for", "1h")


def test_what_alerts_and_people_say_cannot_steer_the_terminal(bare: World) -> None:
    evil = "\x1b[2J\x07\u202enames\n"
    told = record(
        subject=evil, slice=f"f={evil}", message=evil, version=evil, detail=json.dumps({evil: [evil], "why": evil})
    )
    keep(bare, {}, told)
    run(bare, "ack", INCIDENT, "--who", evil, "--note", evil)
    run(bare, "silence", "--subject", evil, "--for", "1h", "--who", evil, "--note", evil)
    for arguments in (("list",), ("show", INCIDENT), ("silences",)):
        shown = run(bare, *arguments)
        assert "names" in shown
        assert not set(shown) & set("\x1b\x07\u202e"), arguments


def test_a_list_that_was_cut_says_so(bare: World) -> None:
    keep(bare, {}, record(), record(incident_id="other", alert_id="other/drift/f0"))
    assert "more than these 1" in run(bare, "list", "--limit", "1")
    assert "more than" not in run(bare, "list", "--limit", "2")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("show", "nothing"), "No incident 'nothing'"),
        (("silence", "--for", "1h"), "Say what to silence"),
        (("silence", "--model", "small", "--for", "1 week"), "is not a duration"),
        (("silence", "--model", "small", "--for", "0m"), "not between 1m and 3650d"),
        (("silence", "--model", "small", "--for", "99999999999999d"), "not between 1m and 3650d"),
        (("silence", "--model", "smal", "--for", "1h"), "Did you mean 'small'"),
        (("unsilence", "x"), "No silence 'x'"),
    ],
)
def test_what_cannot_be_done_is_said(bare: World, arguments: tuple[str, ...], text: str) -> None:
    done = CliRunner().invoke(cli, [*bare.argv, "alerts", *arguments])
    assert done.exit_code != 0
    assert text in done.output + str(done.exception)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ('kind = "webhook"', "needs an http(s) 'url'"),
        ('kind = "email"\nurl = "smtp://x"', "needs 'sender', 'to'"),
        ('kind = "email"\nurl = "smtp://mail:99999"\nsender = "a@b.c"\nto = ["d@e.f"]', "a port that there is not"),
        ('kind = "webhook"\nurl = "https:///path"', "names no host"),
        ('kind = "file"', "needs a 'path'"),
        ('kind = "file"\npath = "x"\nseverity = ["warn"]', "Did you mean 'severities'"),
        ('kind = "pigeon"', "notify.ops.kind"),
    ],
)
def test_a_notifier_that_cannot_work_is_refused_when_the_file_is_read(bare: World, table: str, text: str) -> None:
    file = bare.root / "flywheel.toml"
    file.write_text(f"{TOML}\n[notify.ops]\n{table}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(file)
    assert text in str(refused.value)
