"""The digits' story: the truth comes only from a person.

A model that never saw a 3 or an 8 meets both; users press "wrong" on some of its answers; what they flag lands in the
review queue; a person (or ``--auto``) labels a few dozen; the model is trained again with them and judged on 500
others.

Real: the pictures. Simulated: the users, and the reviewer under ``--auto``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from labeling.leases import Filters
from labeling.store import LabelStore
from retrain.dataset import keep_table, standard_rows
from retrain.initial import register_initial
from retrain.joined import archive_ends
from retrain.paths import Paths
from retrain.registry import Registry
from retrain.run import RunRequest, RunResult, run_retrain
from schemas.database import open_database
from schemas.profile import build_profile
from streams.config import Config
from streams.demo import digits
from streams.demo.drive import Driver
from streams.demo.reviewer import review_digit
from streams.demo.service import PredictionService
from streams.demo.workspace import Workspace
from streams.supervisor import Supervisor

LABELS_AUTO = 40
LABELS_PERSON = 20
RULE = "user_said_wrong"
REVIEWER = "auto"

TOML = """# Written by 'flywheel demo digits'.
[flywheel]
partitions = 2
segment_records = 256
summary_interval_ms = 200
archive_interval_ms = 200
order_slack_ms = 100
web_port = 0

[models.digits]
contract = "digits.avsc"
profile = "profile.json"

[models.digits.failures]
{rules}

[models.digits.retrain]
on_alert = false
actor_share_max = 1.0       # one person labels everything here
refit = false               # the held-out pictures are the measure: they are never trained on
trainer = "sklearn_logistic"
params = {{ C = 1.0 }}

[models.digits.retrain.gate]
block = "row"               # pictures of one day are as independent as any
floor = "off"               # there is no healthy period: the model never knew two of the digits
min_rows = 200
min_days = 1
bias_max = 0.5              # of a confident multiclass model; accuracy and loss decide here
ece_max = 0.5
"""

Say = Callable[[str], None]
Review = Callable[[LabelStore, int], None]
"""Lets a person answer so many open items of a store."""


def prepare(workspace: Workspace, cut: digits.Split, say: Say) -> Config:
    """Configuration, profile and the first champion, if they are not there yet."""
    contract = digits.contract()
    rules = "\n".join(f"{name} = {json.dumps(rule)}" for name, rule in digits.FAILURE_RULES.items())
    config = workspace.configure(contract, digits.CONTRACT_FILE, TOML.format(rules=rules))
    engine = open_database(config.database_url)
    try:
        if Registry(engine).resolve(digits.MODEL) is None:
            say(f"Training on {cut.train.height} digits, none of them a 3 or an 8.")
            training = _timed(cut.train)
            profile = build_profile(
                training, contract.fields, model=digits.MODEL, fingerprint=contract.fingerprint,
                labels=contract.target.labels,
            )  # fmt: skip
            (workspace.folder / "profile.json").write_text(profile.to_json(), encoding="utf-8")
            policy = config.model(digits.MODEL).retrain
            register_initial(engine, Paths(config.state_dir), contract, policy, training, actor="demo")
    finally:
        engine.dispose()
    return config


def _timed(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows without a time of their own, placed before the stream."""
    times = pl.int_range(-rows.height, 0).cast(pl.Int64) * digits.ASK_EVERY_US + digits.STREAM_FROM
    return rows.with_columns(times.alias("event_time"))


def run(
    folder: Path, say: Say, *, fresh: bool, review: Review | None, at_end: Callable[[dict[str, Any], str], None]
) -> None:
    """Play the digits; what is found is told at the end, while the page is still up."""
    workspace = Workspace.open(folder, {"demo": "digits"}, fresh=fresh)
    cut = digits.split(0)
    config = prepare(workspace, cut, say)
    with Supervisor(config, log_file=folder / "worker.log") as up:
        up.wait_ready()
        config = config.model_copy(update={"web_port": up.web_port})
        contract = folder / "digits.avsc"
        with PredictionService(up.brokers, digits.MODEL, config.state_dir, config.registry_path, contract) as service:
            engine = open_database(config.database_url)
            driver = Driver(config, digits.MODEL, engine, up, service)
            champion = Registry(engine).resolve(digits.MODEL)
            assert champion is not None
            service.wait_for(champion.version)
            result = _play(driver, cut, say, review)
            workspace.done("stream", is_finished=True)
            driver.close()
            at_end(result, f"http://{config.web_host}:{up.web_port}/")
            engine.dispose()


def _play(driver: Driver, cut: digits.Split, say: Say, review: Review | None) -> dict[str, Any]:
    store, before = driver.store, driver.service.version
    answers: dict[str, str] = {}
    for batch in digits.demo_events(cut):
        given = driver.send([batch])
        if given.height:
            answers |= dict(zip(given["prediction_id"], given["label"], strict=True))
    flags = digits.user_flags(cut, answers)
    for row in flags.iter_rows(named=True):
        driver.service.client.log_feedback(
            row["prediction_id"], row["event_time"], label=row["label"], kind="user", feedback_id=row["feedback_id"]
        )
        driver.sent["feedback"] += 1
    driver.settle()
    driver.wait(lambda: store.stats().rules.get(RULE, 0) >= flags.height, "routing failures")
    say(f"{len(answers)} digits answered; users pressed 'wrong' on {flags.height} of them.")
    if review is None:
        _label_auto(store)
        say(f"The simulated reviewer labeled {store.stats().labels}.")
    else:
        review(store, LABELS_PERSON)
    driver.settle()
    result = _retrain(driver, cut)
    for candidate in result.candidates:
        say(f"retrain {result.run_id}, {candidate.recipe}: {candidate.verdict}; {candidate.reason}")
    driver.settle()
    quality = {
        "before": _accuracy(driver, cut, before),
        "after": _accuracy(driver, cut, driver.service.version),
    }
    say(f"Accuracy on 500 other digits: {quality['before']:.3f} before, {quality['after']:.3f} now.")
    stats = store.stats()
    return {
        "events": driver.sent,
        "monitored": driver.quality(0, 2**62).rows,
        "queue": {"open": stats.open, "leased": stats.leased, "done": stats.done, "items": stats.items},
        "labels": {"total": stats.labels, "answers": stats.answers},
        "runs": [result.to_json()],
        "champion": {"before": before, "after": driver.service.version},
        "quality": quality,
    }


def _label_auto(store: LabelStore) -> None:
    for _ in range(LABELS_AUTO - store.stats().labels):
        claim = store.next(REVIEWER, Filters(rule=RULE))
        if claim is None:
            return
        store.submit(claim.token, answer=review_digit(claim.row["prediction_id"]).label)


def _retrain(driver: Driver, cut: digits.Split) -> RunResult:
    """What ``flywheel retrain run --gate-table`` does."""
    config = driver.config
    paths, model = Paths(config.state_dir), config.model(digits.MODEL)
    rows = standard_rows(_timed(cut.test), model.contract, source="gate")
    table, _ = keep_table(rows, paths)
    request = RunRequest(
        trigger="manual",
        reason="labels from the review",
        as_of_us=digits.STREAM_FROM + cut.stream.height * digits.ASK_EVERY_US,
        ends=archive_ends(config.archive_dir),
        gate_table=table,
    )
    return run_retrain(driver.engine, paths, model.contract, model.retrain, request)


def _accuracy(driver: Driver, cut: digits.Split, version: str | None) -> float:
    from retrain.artifacts import load_artifact

    assert version is not None
    known = Registry(driver.engine).get(digits.MODEL, version)
    paths = Paths(driver.config.state_dir)
    predictor = load_artifact(paths.root / known.path, known.artifact_sha256, key=paths.key())
    labels = pl.Series(predictor.predict(cut.test).labels, dtype=pl.String)
    return float((labels == cut.test["label"]).mean())  # type: ignore[arg-type]
