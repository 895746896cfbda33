"""Whole runs: judged, promoted or refused, killed and resumed, with everything on record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from retrain import launch
from retrain.artifacts import ArtifactStore
from retrain.cases import waive_case
from retrain.errors import RunInProgressError, UnknownVersionError
from retrain.history import find_run, list_decisions, list_runs
from retrain.initial import register_initial
from retrain.labels import ingest
from retrain.lease import claim
from retrain.paths import Paths
from retrain.recipes import since, version_column
from retrain.registry import Registry
from retrain.run import RunResult, run_retrain
from retrain.tables import dataset, regression_case, retrain_run
from retrain.testing import AS_OF_US, BASE_DAYS, POLICY, START_US, World, served_scores, small_rows, write_log
from schemas.database import read, write
from schemas.database.outbox import pending
from schemas.errors import UsageError
from schemas.events import envelope
from schemas.times import DAY_US, now_us

CHANGE_US = START_US + (BASE_DAYS + 2) * DAY_US


def run(world: World, **changes: Any) -> RunResult:
    return run_retrain(world.engine, world.paths, world.contract, world.policy, world.request(**changes))


def relog(world: World, rows: pl.DataFrame, scores: Any) -> None:
    """Another log instead of the world's own."""
    import shutil

    shutil.rmtree(world.paths.archive)
    world.ends = write_log(world.paths.archive, rows, world.contract, scores)


def changed_rows() -> pl.DataFrame:
    """From the third day of the log on, ``delay`` is measured 15 higher; the truth is what it was."""
    rows = small_rows(10, 400, first_day=BASE_DAYS, seed=1)
    return rows.with_columns(
        delay=pl.when(pl.col("event_time") >= CHANGE_US).then(pl.col("delay") + 15).otherwise(pl.col("delay"))
    )


def served(world: World, rows: pl.DataFrame) -> Any:
    champion = Registry(world.engine).resolve("small")
    assert champion is not None
    return ArtifactStore(world.paths).load(champion.artifact_sha256).predict(rows).scores


def accept_change(world: World) -> None:
    with write(world.engine) as connection:
        ingest(
            connection,
            {"event_id": "small:1:a", "seq": 1, "model": "small", "kind": "proposal_accepted", "actor": "ann"}
            | {"proposal_id": "p1", "proposal_kind": "new_contract_version", "from_us": CHANGE_US, "to_us": None},
        )


def verdict(world: World, seq: int, prediction_id: str, verdict: str | None, answer: str | None = None) -> None:
    with write(world.engine) as connection:
        ingest(
            connection,
            {"event_id": f"small:{seq}:v", "seq": seq, "model": "small", "kind": "submitted", "actor": "ann"}
            | {"prediction_id": prediction_id, "verdict": verdict, "answer": answer, "selection_probability": 1.0},
        )


def test_the_first_version_serves_and_knows_how_good_it_was(world: World) -> None:
    version = Registry(world.engine).resolve("small")
    assert version is not None
    assert (version.version, version.parent, version.approval) == ("v1", None, "approved")
    assert version.metrics["held_out_rows"] > 0
    assert len(version.reference["loss_sums"]) == 4  # a third of ten days, and the day that has begun
    assert version.metrics["rows"] == 2000
    with pytest.raises(UsageError, match="champion already"):
        register_initial(world.engine, world.paths, world.contract, POLICY, small_rows(5))


def test_a_good_challenger_is_promoted_with_everything_on_record(world: World) -> None:
    result = run(world, labels=77)
    assert (result.state, result.version, result.champion_before, result.champion_after) == (
        "promoted",
        "v2",
        "v1",
        "v2",
    )
    version = Registry(world.engine).get("small", "v2")
    assert (version.parent, version.dataset, version.run_id) == ("v1", result.dataset, result.run_id)
    assert version.gate["verdict"] == "pass"
    assert version.gate["judged_artifact_sha256"] != version.artifact_sha256  # trained again with the held-out days
    assert version.metrics["rows"] > result.candidates[0].metrics["fit"]["rows"]
    assert ArtifactStore(world.paths).load(version.artifact_sha256).card["recipe"] == "mixed"
    report = json.loads((world.root / version.gate["report"]).read_text())
    assert report["verdict"] == "pass"
    assert "<table>" in (world.root / version.gate["report"]).with_suffix(".html").read_text()
    row = list_runs(world.engine, "small")[0]
    assert (row["state"], row["version"], row["champion"]) == ("promoted", "v2", "v1")
    fit = find_run(world.engine, result.run_id)["candidates"][0]["metrics"]["fit"]
    assert fit["peak_rss_bytes"] > 1 << 20
    assert fit["cpu_seconds"] > 0
    with read(world.engine) as connection:
        assert connection.execute(sa.select(dataset.c.rows).where(dataset.c.hash == result.dataset)).scalar()
    with read(world.engine) as connection:
        told = [(r.noun, r.record.get("kind") or r.record.get("action")) for r in pending(connection)]
        finished = pending(connection)[-1].record
    assert told[-3:] == [("retrain", "decided"), ("models", "promoted"), ("retrain", "finished")]
    assert finished.keys() == {field["name"] for field in envelope("retrain")["fields"]}
    assert json.loads(finished["detail"])["version"] == "v2"
    decision = list_decisions(world.engine, "small")[0]
    assert (decision["is_yes"], decision["run_id"]) == (True, result.run_id)
    with read(world.engine) as connection:
        detail = connection.execute(
            sa.select(retrain_run.c.detail).where(retrain_run.c.run_id == result.run_id)
        ).scalar_one()
    assert detail["code"].keys() == {"version", "commit", "is_dirty", "lock_sha256"}


def test_the_same_log_gives_the_same_dataset_verdict_and_model(world: World, tmp_path: Path) -> None:
    first = run(world, promote=False)
    again = run(world, promote=False)
    assert (first.state, again.state) == ("passed", "passed")
    assert (first.version, first.champion_after) == ("v2", "v1")  # asked not to promote
    assert Registry(world.engine).resolve("small").version == "v1"  # type: ignore[union-attr]
    assert first.dataset == again.dataset
    assert [c.metrics["fit"]["reused"] for c in again.candidates] == [True]
    for folder in world.paths.root.glob("fits/*"):
        for file in folder.iterdir():
            if file.is_file():
                file.unlink()
        (folder / "artifact").rename(folder.parent.parent / f"gone-{folder.name}")
        folder.rmdir()
    third = run(world, promote=False)
    assert [c.metrics["fit"]["reused"] for c in third.candidates] == [False]
    versions = [Registry(world.engine).get("small", str(r.version)) for r in (first, third)]
    assert versions[0].artifact_sha256 == versions[1].artifact_sha256
    assert first.candidates[0].metrics["challenger"] == third.candidates[0].metrics["challenger"]
    assert first.candidates[0].reason == third.candidates[0].reason


def test_after_a_change_of_meaning_the_recipes_compete_and_the_version_column_wins(world: World) -> None:
    rows = changed_rows()
    relog(world, rows, served(world, rows))
    accept_change(world)
    result = run(world)
    verdicts = {c.recipe.partition("(")[0]: c.verdict for c in result.candidates}
    assert list(verdicts) == ["mixed", "exclude", "since", "version_column"]
    assert verdicts["exclude"] == "fail"
    assert verdicts["version_column"] == "pass"
    losses = {c.recipe.partition("(")[0]: c.metrics["challenger"]["log_loss"] for c in result.candidates}
    assert losses["version_column"] < losses["mixed"] < losses["exclude"]
    version = Registry(world.engine).resolve("small")
    assert version is not None
    predictor = ArtifactStore(world.paths).load(version.artifact_sha256)
    if version.recipe["name"].startswith("version_column"):
        assert version.constants == predictor.constants == {"contract_version": 2.0}
        assert version.boundaries == (CHANGE_US,)
        later = run(world)
        assert [c.recipe for c in later.candidates] == ["mixed"]  # the change is known: its rivals are gone
    late = rows.filter(pl.col("event_time") >= CHANGE_US)
    right = np.mean(np.array(predictor.predict(late).labels) == late["label"].to_numpy())
    assert right > np.mean((served_scores(late) >= 0.5) == (late["label"] == "late").to_numpy()) + 0.1


def test_a_worse_recipe_is_refused_and_nothing_changes(world: World) -> None:
    rows = changed_rows()
    relog(world, rows, served_scores(rows.with_columns(
        delay=pl.when(pl.col("event_time") >= CHANGE_US).then(pl.col("delay") - 15).otherwise(pl.col("delay"))
    )))  # fmt: skip  # a champion that knows of the change already
    result = run(world)
    assert result.state == "refused"
    assert "mixed: fail" in result.reason
    assert Registry(world.engine).resolve("small").version == "v1"  # type: ignore[union-attr]
    assert find_run(world.engine, result.run_id)["candidates"][0]["verdict"] == "fail"


def test_too_few_days_are_inconclusive_and_never_promote(world: World) -> None:
    result = run(world, as_of_us=START_US + (BASE_DAYS + 2) * DAY_US)
    assert result.state == "refused"
    assert result.candidates[0].verdict == "inconclusive"
    assert "2 days are held out, 3 are needed" in result.reason


def test_a_schedule_that_only_makes_the_champion_again_is_refused_without_training(world: World) -> None:
    early = START_US + (BASE_DAYS + 3) * DAY_US
    result = run(world, trigger="cron", as_of_us=early)
    assert (result.state, result.candidates) == ("refused", ())
    assert "knows every row but those of the 4 days that are held out" in result.reason


def test_a_second_run_is_refused_while_one_is_under_way(world: World) -> None:
    with write(world.engine) as connection:
        claim(connection, "small", "another", now_us())
    with pytest.raises(RunInProgressError):
        run(world)
    with read(world.engine) as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(retrain_run)).scalar() == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from retrain import record, run
from retrain.paths import Paths
from retrain.joined import archive_ends
from retrain.testing import AS_OF_US, POLICY, small_contract
from schemas.database import open_database

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

root = Path(sys.argv[1])
setattr({'winner': run, 'move_alias': record}[sys.argv[2]], sys.argv[2], die)
engine = open_database(f"sqlite:///{root / 'db.sqlite'}")
request = run.RunRequest("manual", "a test", AS_OF_US, archive_ends(root / "archive"))
run.run_retrain(engine, Paths(root), small_contract(), POLICY, request)
"""


@pytest.mark.parametrize("where", ["winner", "move_alias"])
def test_a_run_that_is_killed_is_closed_and_its_parts_are_used_by_the_next(world: World, where: str) -> None:
    died = subprocess.run([sys.executable, "-c", KILLED, str(world.root), where], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert list_runs(world.engine, "small")[0]["state"] == "running"
    assert Registry(world.engine).resolve("small").version == "v1"  # type: ignore[union-attr]
    result = run(world)
    assert result.state == "promoted"
    assert [c.metrics["fit"]["reused"] for c in result.candidates] == [True]
    states = {row["run_id"]: row["state"] for row in list_runs(world.engine, "small")}
    assert states == {"small-r1": "promoted", "small-r2": "dead", "small-r3": "promoted"}
    assert [v.version for v in Registry(world.engine).versions("small")] == ["v1", "v2"]
    assert not list(world.root.rglob("*.unfinished"))


INTERRUPTED = """
import sys
import time
from pathlib import Path
from retrain import run
from retrain.paths import Paths
from retrain.joined import archive_ends
from retrain.testing import AS_OF_US, POLICY, small_contract
from schemas.database import open_database

root = Path(sys.argv[1])
engine = open_database(f"sqlite:///{root / 'db.sqlite'}")
request = run.RunRequest("manual", "a test", AS_OF_US, archive_ends(root / "archive"))
policy = POLICY.model_copy(update={"trainer": "sklearn_hgb", "params": {"max_iter": 1_000_000}})
run.run_retrain(engine, Paths(root), small_contract(), policy, request)
"""


def test_an_interrupted_run_ends_its_trainers_and_says_so(world: World) -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(world.root)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(world.root.glob("fits/*.unfinished/log.txt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in told
    row = list_runs(world.engine, "small")[0]
    assert (row["state"], row["outcome"]) == ("failed", "KeyboardInterrupt: ")
    assert run(world).state == "promoted"


def test_a_trainer_that_is_killed_fails_its_recipe_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    work = launch._Process.work

    def killed(self: launch._Process, spec_path: Path, limit_s: float) -> int | None:
        if "since" in spec_path.read_text():
            os.kill(self.popen.pid, signal.SIGKILL)
        return work(self, spec_path, limit_s)

    monkeypatch.setattr(launch._Process, "work", killed)
    from retrain.recipes import mixed

    result = run(world, recipes=(since(START_US + 12 * DAY_US), mixed()))
    assert [c.verdict for c in result.candidates] == ["error", "pass"]
    assert "ended by SIGKILL" in result.candidates[0].reason
    assert result.state == "promoted"


def test_a_trainer_over_its_time_is_ended(world: World) -> None:
    world.policy = world.policy.model_copy(update={"time_limit_s": 0.05})
    result = run(world)
    assert result.state == "refused"
    assert "took longer than 0.05 s" in result.candidates[0].reason


def test_a_trainer_over_its_memory_is_ended(world: World) -> None:
    world.policy = world.policy.model_copy(update={"memory_limit_mb": 64})
    result = run(world)
    assert result.candidates[0].verdict == "error"
    assert result.state == "refused"


def test_a_trainer_that_complains_is_quoted(world: World) -> None:
    world.policy = world.policy.model_copy(update={"params": {"C": "a lot"}})
    result = run(world)
    assert result.candidates[0].verdict == "error"
    assert "could not convert string to float" in result.candidates[0].reason


def test_a_run_without_rows_fails_with_the_reason_and_frees_the_lease(world: World) -> None:
    world.policy = world.policy.model_copy(update={"min_train_rows": 10**6})
    result = run(world)
    assert result.state == "failed"
    assert "1000000 are needed" in result.reason
    world.policy = POLICY
    assert run(world).state == "promoted"


def test_a_change_of_the_champion_during_a_run_is_not_overwritten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrain import run as module

    run(world, promote=False)
    find = module.winner  # type: ignore[attr-defined]

    def meanwhile(challengers: Any) -> Any:
        Registry(world.engine).promote("small", "v2", actor="ann", reason="by hand", time_us=AS_OF_US)
        return find(challengers)

    monkeypatch.setattr(module, "winner", meanwhile)
    result = run(world)
    assert result.state == "failed"
    assert "is v2 by now, not v1" in result.reason
    assert Registry(world.engine).resolve("small").version == "v2"  # type: ignore[union-attr]
    assert [v.version for v in Registry(world.engine).versions("small")] == ["v1", "v2"]


def test_rows_served_by_an_older_version_are_judged_by_the_deployed_ones_own_answers(world: World) -> None:
    assert run(world).champion_after == "v2"
    again = run(world)  # the log holds v1's answers, v2 is deployed
    champion = again.candidates[0].metrics["champion"]
    rows = small_rows(10, first_day=BASE_DAYS, seed=1)
    assert champion["log_loss"] != pytest.approx(
        float(-np.log(np.where(rows["label"] == "late", served_scores(rows), 1 - served_scores(rows))).mean()), abs=1e-4
    )
    assert again.champion_before == "v2"


def test_a_fixed_failure_becomes_a_case_that_must_stay_fixed(world: World) -> None:
    rows = changed_rows()
    scores = served(world, rows)
    relog(world, rows, scores)
    wrong = rows.filter((pl.Series(scores) >= 0.5) != (pl.col("label") == "late"), pl.col("event_time") >= CHANGE_US)
    names = wrong["prediction_id"].to_list()[:20]
    for seq, name in enumerate(names):
        verdict(world, seq + 2, name, "meaning_changed")
    accept_change(world)
    first = run(world)
    assert first.state == "promoted"
    with read(world.engine) as connection:
        cases = connection.execute(sa.select(regression_case)).all()
    assert 0 < len(cases) <= 20
    assert {(c.failed_version, c.fixed_version, c.verdict) for c in cases} == {("v1", "v2", "meaning_changed")}
    bad = run(world, recipes=(since(AS_OF_US - 5 * DAY_US), version_column(CHANGE_US)), promote=False)
    checks = json.loads((world.root / bad.candidates[1].report).read_text())["checks"]
    fixed = next(c for c in checks if c["name"] == "fixed_failures")
    assert (fixed["verdict"], fixed["n"]) == ("pass", len(cases))
    with write(world.engine) as connection:  # a case that nobody can have right
        connection.execute(sa.update(regression_case).values(y=1 - regression_case.c.y))
    broken = run(world, promote=False)
    assert broken.state == "refused"
    assert cases[0].prediction_id in broken.reason or "failures that were fixed are back" in broken.reason
    for case in cases:
        waive_case(world.engine, "small", case.prediction_id, actor="ann", reason="the truth feed was wrong")
    assert "fixed are back" not in run(world, promote=False).reason
    with pytest.raises(UnknownVersionError, match="no fixed failure"):
        waive_case(world.engine, "small", "nobody", actor="ann", reason="-")


def test_broken_inputs_are_neither_trained_on_nor_judged_by(world: World) -> None:
    rows = small_rows(10, first_day=BASE_DAYS, seed=1)
    names = rows["prediction_id"].to_list()[::10]
    for seq, name in enumerate(names):
        verdict(world, seq + 1, name, "input_broken")
    result = run(world, promote=False)
    kept = pl.read_parquet(world.paths.dataset(str(result.dataset)) / "rows.parquet")
    assert kept.filter(pl.col("@split") == "out")["prediction_id"].sort().to_list() == sorted(names)
    assert result.candidates[0].metrics["n"] == kept.filter(pl.col("@split") == "gate").height
    assert result.candidates[0].metrics["fit"]["rows"] == kept.filter(pl.col("@split") == "train").height


def test_an_online_champion_is_gone_on_from(tmp_path: Path) -> None:
    from retrain.testing import small_contract
    from schemas.database import open_database

    engine = open_database(f"sqlite:///{tmp_path / 'db.sqlite'}")
    policy = POLICY.model_copy(update={"trainer": "river_online", "refit": False})
    contract, paths = small_contract(), Paths(tmp_path)
    first = register_initial(engine, paths, contract, policy, small_rows(BASE_DAYS))
    rows = small_rows(10, first_day=BASE_DAYS, seed=1)
    ends = write_log(
        paths.archive, rows, contract, ArtifactStore(paths).load(first.artifact_sha256).predict(rows).scores
    )
    world = World(tmp_path, engine, contract, policy, ends)
    result = run(world)
    assert result.state == "promoted", result.reason
    notes = result.candidates[0].metrics["fit"]["notes"]
    assert notes["continued"] is True
    assert notes["rows_known"] == 2000
    engine.dispose()
