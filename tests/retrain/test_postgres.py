"""The same life of a model on PostgreSQL: first version, run, decision, promotion, rollback, one run at a time."""

from __future__ import annotations

import threading
from pathlib import Path

from retrain import lease as leases
from retrain.errors import RunInProgressError
from retrain.initial import register_initial
from retrain.labels import ingest
from retrain.paths import Paths
from retrain.registry import Registry
from retrain.run import run_retrain
from retrain.testing import (
    AS_OF_US,
    BASE_DAYS,
    LOG_DAYS,
    POLICY,
    World,
    served_scores,
    small_contract,
    small_rows,
    write_log,
)
from retrain.triggers import audit, decide, gather
from schemas.database import open_database, write
from schemas.times import now_us
from streams.testing import PostgresServer


def test_a_model_lives_on_postgresql(postgres: PostgresServer, tmp_path: Path) -> None:
    engine = open_database(postgres.database("retrain_life"))
    contract, paths = small_contract(), Paths(tmp_path)
    register_initial(engine, paths, contract, POLICY, small_rows(BASE_DAYS))
    rows = small_rows(LOG_DAYS, first_day=BASE_DAYS, seed=1)
    ends = write_log(paths.archive, rows, contract, served_scores(rows))
    world = World(tmp_path, engine, contract, POLICY, ends)
    with write(engine) as connection:
        told = {"event_id": "small:1:a", "seq": 1, "model": "small", "kind": "submitted", "actor": "ann"}
        answer = {"prediction_id": rows["prediction_id"][0], "answer": "late", "verdict": None}
        assert ingest(connection, told | answer | {"selection_probability": 1.0})
        assert not ingest(connection, told | answer)
    policy = POLICY.model_copy(update={"min_new_labels": 100})
    decision = decide(policy, gather(engine, "small", "UTC", AS_OF_US, labels=2000))
    decision_id = audit(engine, "small", decision, AS_OF_US)
    assert decision.trigger == "volume"
    request = world.request(trigger=decision.trigger, reason=decision.reason, labels=2000, decision_id=decision_id)
    result = run_retrain(engine, paths, contract, POLICY, request)
    assert (result.state, result.champion_after) == ("promoted", "v2")
    assert not decide(policy, gather(engine, "small", "UTC", AS_OF_US, labels=2000)).is_yes
    registry = Registry(engine)
    assert registry.rollback("small", actor="ann", reason="a drill", time_us=AS_OF_US + 1).version == "v1"
    assert [registry.at("small", at).version for at in (AS_OF_US, AS_OF_US + 1)] == ["v2", "v1"]  # type: ignore[union-attr]
    engine.dispose()


def test_of_many_claims_at_once_one_wins(postgres: PostgresServer) -> None:
    engine = open_database(postgres.database("retrain_claims"))
    won: list[int] = []
    lost: list[int] = []
    start = threading.Barrier(8)

    def claim(number: int) -> None:
        start.wait()
        try:
            with write(engine) as connection:
                leases.claim(connection, "small", f"r{number}", now_us())
            won.append(number)
        except RunInProgressError:
            lost.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    engine.dispose()
