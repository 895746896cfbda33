"""The status page: whole without a script, safe with hostile texts, and never in the worker's way."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import xml.dom.minidom
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from retrain.testing import START_US
from schemas.database import write
from schemas.errors import BrokerUnreachableError
from schemas.profile import FeatureProfile
from schemas.times import DAY_US, HOUR_US
from streams.ends import EndsReader, LogEnds
from streams.status import StatusReader
from streams.tables import alert
from streams.testing.served import World
from streams.web import html
from streams.web.axes import nice_ticks
from streams.web.charts import Mark, Point, histogram, lines
from streams.web.feature import CELLS_SHOWN, cells_of
from streams.web.page import StatusPage, attach, register
from streams.web.view import Choice, View

AWAY = LogEnds("embedded", error=BrokerUnreachableError())
HOSTILE = "<script>alert(1)</script>\"'&"


class NoBroker(EndsReader):
    """A broker that is away."""

    def read(self) -> LogEnds:
        return AWAY


def view_of(world: World) -> View:
    return View(StatusReader(world.config, world.engine, world.codec))


def add_alert(world: World, **changes: Any) -> None:
    row = {
        "alert_id": "i1/a", "incident_id": "i1", "model": "small", "version": "v1",
        "time_us": START_US + 3 * DAY_US + HOUR_US, "severity": "page", "channel": "drift", "subject": "delay",
        "slice": "all", "state": "opened", "closed_us": None, "message": "delay moved.", "detail": {},
    }  # fmt: skip
    with write(world.engine) as connection:
        connection.execute(alert.insert().values(row | changes))


def ask(world: World, *paths: str, method: str = "GET", host: str = "127.0.0.1", **headers: str) -> list[Any]:
    """The answers of a page of this world, as (status, headers, text)."""
    page = StatusPage(view_of(world), NoBroker("", ""))
    return serve(page, paths, method, host, headers)


def serve(page: StatusPage, paths: tuple[str, ...], method: str, host: str, headers: dict[str, str]) -> list[Any]:
    async def talk() -> list[Any]:
        application = web.Application()
        attach(application, page, host)
        async with TestClient(TestServer(application)) as client:
            answers = []
            for path in paths:
                async with client.request(method, path, headers=headers) as response:
                    answers.append((response.status, response.headers, await response.text()))
            return answers

    return asyncio.run(talk())


class Texts(HTMLParser):
    """Tags and texts of a document."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


# -- the answers -----------------------------------------------------------------------------------------------------


def test_the_page_shows_figures_histogram_and_quality_without_a_script(world: World) -> None:
    add_alert(world)
    ((status, headers, body),) = ask(world, "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    found = Texts(body)
    assert {"300", "100.00 %"} <= set(found.texts)
    charts = [attrs["aria-label"] for tag, attrs in found.tags if tag == "svg"]
    assert charts == [
        "delay: served against training",
        "delay: evidence against training",
        "log loss by day",
        "bias: mean answer less mean truth by day",
        "share of predictions whose truth is known by day",
        "accuracy expected by the scores, less realised, by day",
    ]
    marks = [attrs for tag, attrs in found.tags if tag == "g" and "mark" in (attrs.get("class") or "")]
    assert [mark["class"] for mark in marks] == ["mark page"] * 5
    assert "delay moved." in body


def test_nothing_is_loaded_from_elsewhere_and_only_our_own_script_may_run(world: World) -> None:
    ((_, headers, body),) = ask(world, "/")
    policy = headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)
    assert nonce is not None
    assert policy.startswith("default-src 'none'")
    for tag, attrs in Texts(body).tags:
        assert "style" not in attrs
        assert not any(name.startswith("on") for name in attrs)
        assert not str(attrs.get("src", "")).startswith("http")
        assert not str(attrs.get("href", "")).startswith("http")
        if tag in ("script", "style"):
            assert attrs["nonce"] == nonce[1]
    again = ask(world, "/")[0][1]["Content-Security-Policy"]
    assert again != policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"


def test_what_came_from_events_is_escaped_everywhere(world: World) -> None:
    add_alert(world, message=HOSTILE, subject=HOSTILE, severity=HOSTILE, slice=HOSTILE)
    add_alert(world, alert_id="plane/x", incident_id="plane/x", model="", message=HOSTILE, channel="plane")
    ((_, _, body),) = ask(
        world, f"/?model=x%3Cscript%3E&feature={HOSTILE}&slice={HOSTILE}&from={HOSTILE}".replace("#", "")
    )
    assert "<script>alert" not in body
    assert [tag for tag, _ in Texts(body).tags if tag == "script"] == ["script"]
    assert HOSTILE in "".join(Texts(body).texts)


def test_the_json_says_what_the_page_shows(world: World) -> None:
    add_alert(world)
    ((status, headers, body),) = ask(world, "/status.json?feature=route&slice=route%3DA")
    told = json.loads(body)
    assert status == 200
    assert headers["Content-Type"].startswith("application/json")
    assert told["status"]["monitored"] == 300
    assert (told["feature"]["name"], told["slice"]) == ("route", "route=A")
    assert [c["label"] for c in told["feature"]["cells"] if c["count"]] == ["A"]
    assert [m["severity"] for m in told["marks"]] == ["page"]
    assert len(told["days"]) == 6


@pytest.mark.parametrize(
    ("method", "status"), [("POST", 405), ("PUT", 405), ("DELETE", 405), ("OPTIONS", 405), ("HEAD", 200)]
)
def test_it_can_only_be_read(world: World, method: str, status: int) -> None:
    assert ask(world, "/", method=method)[0][0] == status


def test_there_is_one_page_and_its_json(bare: World) -> None:
    ((status, headers, _),) = ask(bare, "/router")
    assert status == 404
    assert headers["X-Frame-Options"] == "DENY"


def test_on_loopback_a_foreign_name_is_refused(bare: World) -> None:
    assert ask(bare, "/", Host="evil.example")[0][0] == 421
    assert ask(bare, "/", Host="[::1]:8321")[0][0] == 200
    assert ask(bare, "/", Host="LOCALHOST:8321")[0][0] == 200
    assert ask(bare, "/", host="0.0.0.0", Host="flywheel.example")[0][0] == 200


def test_a_model_that_has_seen_nothing_and_an_installation_without_models(bare: World) -> None:
    ((status, _, body),) = ask(bare, "/")
    assert status == 200
    assert "No prediction was monitored yet." in body
    page = StatusPage(
        View(StatusReader(bare.config.model_copy(update={"models": {}}), bare.engine, bare.codec)), NoBroker("", "")
    )
    ((status, _, body),) = serve(page, ("/",), "GET", "127.0.0.1", {})
    assert status == 200
    assert "No model is configured" in body


def test_a_contract_that_is_gone_leaves_the_rest_of_the_page(world: World) -> None:
    (world.root / "small.avsc").unlink()
    world.config.model("small").__dict__.pop("contract", None)
    ((status, _, body),) = ask(world, "/")
    assert status == 200
    assert "cannot be read" in body
    assert "300" in body


def test_a_database_that_does_not_answer_is_told(world: World) -> None:
    broken = sa.create_engine(f"sqlite:///{world.root}/none/none.db")
    page = StatusPage(View(StatusReader(world.config, broken, world.codec)), NoBroker("", ""))
    (whole, data) = serve(page, ("/", "/status.json"), "GET", "127.0.0.1", {})
    assert (whole[0], data[0]) == (503, 503)
    assert "does not answer" in whole[2]
    assert "does not answer" in json.loads(data[2])["error"]["message"]


# -- in nobody's way -------------------------------------------------------------------------------------------------


class Slow(View):
    """A view that waits until it is let go, and counts how often it was asked."""

    def __init__(self, world: World) -> None:
        super().__init__(StatusReader(world.config, world.engine, world.codec))
        self.go, self.asked = threading.Event(), 0

    def gather(self, choice: Choice, ends: LogEnds) -> dict[str, Any]:
        self.asked += 1
        assert self.go.wait(30)
        return super().gather(choice, ends)


def test_a_slow_look_does_not_block_the_loop_and_is_shared(world: World) -> None:
    slow = Slow(world)
    page = StatusPage(slow, NoBroker("", ""))

    async def talk() -> list[int]:
        application = web.Application()
        attach(application, page, "127.0.0.1")
        async with TestClient(TestServer(application)) as client:
            asked = [asyncio.ensure_future(_status(client)) for _ in range(5)]
            async with client.get("/nothing") as quick:  # answered while the others wait
                assert quick.status == 404
            slow.go.set()
            return list(await asyncio.gather(*asked))

    async def _status(client: Any) -> int:
        async with client.get("/") as response:
            return int(response.status)

    assert asyncio.run(talk()) == [200] * 5
    assert slow.asked == 1


def test_register_puts_the_page_on_a_workers_web_server(world: World) -> None:
    application = web.Application()
    app = SimpleNamespace(web=SimpleNamespace(web_app=application))
    runtime: Any = SimpleNamespace(
        config=world.config, engine=world.engine, codec=world.codec, bootstrap="127.0.0.1:1", cluster="c"
    )
    register(app, runtime)
    assert {resource.canonical for resource in application.router.resources()} == {"/", "/status.json"}


# -- choices ---------------------------------------------------------------------------------------------------------


def test_a_range_of_time_is_what_the_histogram_counts(world: World) -> None:
    start = "2024-01-02T00:00"
    told = view_of(world).gather(Choice.of({"from": start, "until": "2024-01-03T00:00"}), AWAY)
    own = world.rows["event_time"].is_between(START_US + DAY_US, START_US + 2 * DAY_US, closed="left").sum()
    assert told["feature"]["rows"] == own
    assert told["feature"]["from"] == "2024-01-02T00:00:00Z"
    shares = sum(cell["serving"] for cell in told["feature"]["cells"])
    assert shares == pytest.approx(1.0)


def test_by_default_it_is_the_newest_day(world: World) -> None:
    told = view_of(world).gather(Choice(), AWAY)
    assert told["feature"]["until"] == "2024-01-07T00:00:00Z"
    assert told["feature"]["from"] == "2024-01-06T00:00:00Z"


@pytest.mark.parametrize(
    "query",
    [{"from": "yesterday"}, {"until": "2024-13-01"}, {"days": "many"}, {"days": "-3"}, {"days": "٣"}, {"slice": "x=y"},
     {"slice": "\x00\x1b"}, {"model": "\ud800"},
     {"feature": "nothing"}, {"model": "nobody"}, {"from": "0001-01-01", "until": "9999-12-31"}],
)  # fmt: skip
def test_a_choice_that_cannot_be_is_the_default_with_a_note(world: World, query: dict[str, str]) -> None:
    told = view_of(world).gather(Choice.of(query), AWAY)
    assert told["model"] == "small"
    assert len(told["days"]) in (1, 6)
    assert told["notes"] or "days" in query
    page = html.page(told, "n")
    assert not re.search("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f\ud800-\udfff]", page)
    assert page.encode()


def test_a_model_without_a_profile_has_quality_but_no_histogram(world: World) -> None:
    (world.root / "profile.json").unlink()
    told = view_of(world).gather(Choice(), AWAY)
    assert told["feature"] is None
    assert len(told["days"]) == 6
    assert "no reference profile" in html.page(told, "n")


# -- charts ----------------------------------------------------------------------------------------------------------


def is_well_formed(svg: str) -> bool:
    xml.dom.minidom.parseString(svg)
    return True


@pytest.mark.parametrize("kind", ["none", "one", "gaps", "wild"])
def test_lines_are_well_formed_whatever_the_days_hold(kind: str) -> None:
    points = {
        "none": [Point(0.5, None)],
        "one": [Point(0.5, 0.3, 0.1, 0.5, "<&>")],
        "gaps": [Point(0.5, 0.3, 0.2, 0.4), Point(1.5, None), Point(4.5, 0.2)],
        "wild": [Point(0.5, 1e9, -1e12, 1e12), Point(1.5, -1e-9, None, None)],
    }[kind]
    marks = [Mark(0.2, "page", HOSTILE), Mark(99.0, "warn", "outside")]
    svg = str(lines(points, ["2024-01-01"] * 5, [0, 0.5, 1, 0.2, 0], marks, title=HOSTILE, zero=kind != "one"))
    assert is_well_formed(svg)
    assert svg.count('class="mark') == 1
    assert "nan" not in svg


def test_young_days_are_shaded_by_the_share_of_truths_that_is_missing() -> None:
    svg = str(lines([Point(0.5, 0.3)], ["a", "b"], [0.0, 0.5], [], title="t"))
    assert re.findall(r'class="young"[^>]*fill-opacity="([\d.]+)"', svg) == ["0.225"]


def test_a_histogram_is_well_formed_with_hostile_labels() -> None:
    cells = [{"label": HOSTILE, "reference": 0.25, "serving": 0.5, "count": 3}]
    assert is_well_formed(str(histogram(cells, HOSTILE)))
    assert histogram([], "empty").body == ""
    nothing = [{"label": "a", "reference": 0.0, "serving": 0.0, "count": 0}]
    assert is_well_formed(str(histogram(nothing, "nothing served")))


def test_ticks_cover_every_range() -> None:
    for low, high in ((0.0, 1e-9), (-3.0, 5.0), (0.0, 0.0), (0.12, 0.121), (0.0, 123456.0)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 12


def test_of_many_categories_the_rarest_are_one_column() -> None:
    names = tuple(f"n{i}" for i in range(60))
    counts = (0, 0, 0, *range(60, 0, -1))
    feature = FeatureProfile("f", "category", (), names, (), counts, tuple(c + 0.5 for c in counts), 0, 0.0)
    import numpy as np

    cells = cells_of(feature, np.array(counts))
    assert len(cells) == CELLS_SHOWN
    assert cells[-1]["label"] == "21 rarer"
    assert sum(cell["serving"] for cell in cells) == pytest.approx(1.0)
    assert sum(cell["reference"] for cell in cells) == pytest.approx(1.0)
