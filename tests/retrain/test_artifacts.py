"""Artifacts and trainers: what was trained is what is served, or nothing is."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from retrain.artifacts import ArtifactStore, load_artifact, reference_rows, save_artifact
from retrain.encoding import Encoder
from retrain.errors import ArtifactRefusedError, TrainerFailedError
from retrain.paths import Paths
from retrain.predictor import Predictor
from retrain.testing import small_contract, small_rows
from retrain.trainers import TRAINERS, Fitted, Job, trainer
from retrain.trainers.river_online import AllowListUnpickler, Online
from retrain.trainers.sklearn_hgb import scaled
from schemas.contract import Target

KEY = b"k" * 32
KINDS = (("delay", "number"), ("load", "number"), ("route", "category"))
BINARY = small_contract().target
THREE = Target("multiclass", ("A", "B", "C"))
VALUE = Target("regression")
TARGETS = {"binary": BINARY, "multiclass": THREE, "regression": VALUE}


def job(kind: str = "binary", days: int = 5, **told: Any) -> Job:
    rows = small_rows(days)
    y = (rows["label"] == "late").cast(pl.Float64).to_numpy()
    if kind == "multiclass":
        y = np.digitize(rows["delay"].to_numpy(), [-5.0, 5.0]).astype(float)
    if kind == "regression":
        y = 2 * rows["delay"].to_numpy() + rows["load"].to_numpy()
    given: dict[str, Any] = {
        "rows": rows, "y": y, "weights": None, "kinds": KINDS, "target": TARGETS[kind], "params": {}, "seed": 0
    }  # fmt: skip
    return Job(**(given | told))


def kept(folder: Path, name: str, fitted: Fitted, done: Job) -> str:
    return save_artifact(
        folder,
        name=name,
        estimator=fitted.estimator,
        encoder=fitted.encoder,
        target=done.target,
        constants={},
        reference=reference_rows(done.rows, fitted.encoder, {}),
        card={"versions": {"scikit-learn": "1"}},
        key=KEY,
    )


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_learns_every_target_and_survives_the_disk(tmp_path: Path, name: str, kind: str) -> None:
    done = job(kind)
    fitted = trainer(name).fit(done)
    sha256 = kept(tmp_path / "a", name, fitted, done)
    loaded = load_artifact(tmp_path / "a", sha256, key=KEY)
    fresh = small_rows(1, 100, first_day=9)
    before = Predictor(fitted.estimator, fitted.encoder, done.target, {}, {}).predict(fresh)
    after = loaded.predict(fresh)
    assert before.outputs.tobytes() == after.outputs.tobytes()
    assert before.labels == after.labels
    assert loaded.feature_names == ("delay", "load", "route")
    if kind == "regression":
        assert np.corrcoef(after.scores, fresh["delay"].to_numpy())[0, 1] > 0.9
    else:
        assert after.outputs.sum(axis=1) == pytest.approx(1.0)
        answers = done.target.labels
        truth = fresh["label"].to_list() if kind == "binary" else None
        labels = after.labels or []
        right = [a == t for a, t in zip(labels, truth, strict=True)] if truth else [a in answers for a in labels]
        assert np.mean(right) > 0.75


@pytest.mark.parametrize("name", TRAINERS)
def test_the_same_rows_give_the_same_artifact(tmp_path: Path, name: str) -> None:
    done = job()
    first, again = (kept(tmp_path / f"a{n}", name, trainer(name).fit(done), done) for n in range(2))
    assert first == again


@pytest.mark.parametrize("name", TRAINERS)
def test_rows_far_out_unseen_or_empty_give_numbers(name: str) -> None:
    done = job()
    fitted = trainer(name).fit(done)
    edges = reference_rows(done.rows, fitted.encoder, {}).tail(3)
    outputs = fitted.estimator.outputs(fitted.encoder.matrix(edges), edges)
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("name", TRAINERS)
def test_one_label_is_nothing_to_learn_for_scikit_learn(name: str) -> None:
    done = job(y=np.zeros(1000))
    if name == "river_online":
        assert trainer(name).fit(done).notes["rows_learnt"] == 1000
        return
    with pytest.raises(TrainerFailedError, match="same label"):
        trainer(name).fit(done)


def test_a_label_that_training_lacked_has_no_probability() -> None:
    done = job("multiclass")
    only_two = np.where(done.y == 1, 2.0, done.y)
    fitted = trainer("sklearn_hgb").fit(job("multiclass", y=only_two))
    outputs = fitted.estimator.outputs(fitted.encoder.matrix(done.rows), done.rows)
    assert (outputs[:, 1] == 0).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    done, folder = job(), tmp_path_factory.mktemp("trained") / "a"
    return folder, kept(folder, "sklearn_hgb", trainer("sklearn_hgb").fit(done), done)


@pytest.fixture
def artifact(trained: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    shutil.copytree(trained[0], tmp_path / "a")
    return tmp_path / "a", trained[1]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["model.bin", "card.json", "reference.parquet", "artifact.json", "signature"])
def test_one_changed_bit_anywhere_refuses_the_artifact(artifact: tuple[Path, str], file: str) -> None:
    folder, sha256 = artifact
    flip(folder / file)
    with pytest.raises(ArtifactRefusedError):
        load_artifact(folder, sha256, key=KEY)


@pytest.mark.parametrize("file", ["model.bin", "card.json", "reference.parquet", "artifact.json", "signature"])
def test_a_file_that_is_gone_refuses_the_artifact(artifact: tuple[Path, str], file: str) -> None:
    folder, sha256 = artifact
    (folder / file).unlink()
    with pytest.raises(ArtifactRefusedError, match="not whole"):
        load_artifact(folder, sha256, key=KEY)


def test_another_key_or_another_identity_refuses_it(artifact: tuple[Path, str]) -> None:
    folder, sha256 = artifact
    with pytest.raises(ArtifactRefusedError, match="not signed by this installation"):
        load_artifact(folder, sha256, key=b"x" * 32)
    with pytest.raises(ArtifactRefusedError, match="another hash"):
        load_artifact(folder, "0" * 64, key=KEY)


def resigned(folder: Path, change: Callable[[Path], object]) -> str:
    """A thief who has the key: the files changed, every hash and the signature made right again."""
    from retrain.artifacts import _signature
    from retrain.paths import file_sha256

    change(folder)
    files = {file: file_sha256(folder / file) for file in ("card.json", "model.bin", "reference.parquet")}
    (folder / "artifact.json").write_text(json.dumps({"files": files}))
    sha256 = file_sha256(folder / "artifact.json")
    (folder / "signature").write_text(_signature(sha256, KEY))
    return sha256


def test_predictions_that_differ_in_one_bit_refuse_it(artifact: tuple[Path, str]) -> None:
    folder, _ = artifact

    def nudge(place: Path) -> None:
        rows = pl.read_parquet(place / "reference.parquet")
        first = np.nextafter(rows["@expected_0"][5], 1)
        at = pl.int_range(pl.len()) == 5
        rows = rows.with_columns(pl.when(at).then(first).otherwise("@expected_0").alias("@expected_0"))
        rows.write_parquet(place / "reference.parquet")

    sha256 = resigned(folder, nudge)
    with pytest.raises(ArtifactRefusedError, match="does not give its reference predictions again"):
        load_artifact(folder, sha256, key=KEY)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/pwned",)


def test_types_outside_the_lists_are_refused_even_when_signed(artifact: tuple[Path, str], tmp_path: Path) -> None:
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    folder, _ = artifact
    other = FunctionTransformer(os.getcwd)
    sha256 = resigned(folder, lambda place: (place / "model.bin").write_bytes(skops.io.dumps(other)))
    with pytest.raises(ArtifactRefusedError, match="cannot be read"):
        load_artifact(folder, sha256, key=KEY)
    done = job()
    online = tmp_path / "online"
    kept(online, "river_online", trainer("river_online").fit(done), done)
    sha256 = resigned(online, lambda place: (place / "model.bin").write_bytes(pickle.dumps(Evil())))
    with pytest.raises(ArtifactRefusedError, match=r"'posix.system' is not on the list"):
        load_artifact(online, sha256, key=KEY)


@pytest.mark.parametrize("name", ["getattr", "eval", "functools.partial", "builtins.exec"])
def test_the_unpickler_knows_no_dangerous_name(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    text = f"c{module or 'builtins'}\n{attribute}\n.".encode()
    with pytest.raises(pickle.UnpicklingError, match="not on the list"):
        AllowListUnpickler(io.BytesIO(text)).load()


def test_an_unknown_trainer_is_refused(artifact: tuple[Path, str]) -> None:
    folder, _ = artifact

    def rename(place: Path) -> None:
        card = json.loads((place / "card.json").read_text())
        (place / "card.json").write_text(json.dumps(card | {"trainer": "magic"}))

    with pytest.raises(ArtifactRefusedError, match="unknown trainer 'magic'"):
        load_artifact(folder, resigned(folder, rename), key=KEY)


def test_the_store_holds_one_artifact_once_and_keeps_its_key(tmp_path: Path) -> None:
    paths, done = Paths(tmp_path), job()
    fitted = trainer("sklearn_logistic").fit(done)
    sha256 = save_artifact(
        tmp_path / "fit", name="sklearn_logistic", estimator=fitted.estimator, encoder=fitted.encoder,
        target=BINARY, constants={}, reference=reference_rows(done.rows, fitted.encoder, {}), card={}, key=paths.key(),
    )  # fmt: skip
    store = ArtifactStore(paths)
    place = store.adopt(tmp_path / "fit", sha256)
    assert store.adopt(tmp_path / "fit", sha256) == place
    shutil.rmtree(tmp_path / "fit")
    assert store.load(sha256).card["trainer"] == "sklearn_logistic"
    key_file = tmp_path / "keys" / "artifact.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert paths.key() == Paths(tmp_path).key()


def test_the_online_learner_goes_on_from_the_champion_and_does_not_start_over() -> None:
    rows = small_rows(8)
    cut = int(rows["event_time"][800])
    y = (rows["label"] == "late").cast(pl.Float64).to_numpy()
    known = (rows["event_time"] <= cut).to_numpy()
    module = trainer("river_online")
    first = module.fit(job(rows=rows.filter(known), y=y[known]))
    champion = Predictor(first.estimator, first.encoder, BINARY, {}, {})
    on = module.fit(job(rows=rows, y=y, parent=champion, parent_until_us=cut))
    assert on.notes == {"continued": True, "rows_known": int(known.sum()), "rows_learnt": int((~known).sum())}
    whole = module.fit(job(rows=rows, y=y))
    restart = module.fit(job(rows=rows.filter(~known), y=y[~known]))
    fresh = small_rows(1, 100, first_day=20)

    def outputs(fitted: Fitted) -> Any:
        return fitted.estimator.outputs(fitted.encoder.matrix(fresh), fresh)

    assert (outputs(on) == outputs(whole)).all()  # one pass over all rows, in two parts
    assert np.abs(outputs(on) - outputs(restart)).max() > 0.01
    with pytest.raises(TrainerFailedError, match="rows that the champion has not learnt"):
        module.fit(job(rows=rows.filter(known), y=y[known], parent=champion, parent_until_us=cut))


def test_a_tree_learns_online_too(tmp_path: Path) -> None:
    done = job("multiclass", days=10, params={"learner": "hoeffding_tree"})
    fitted = trainer("river_online").fit(done)
    sha256 = kept(tmp_path / "a", "river_online", fitted, done)
    assert isinstance(load_artifact(tmp_path / "a", sha256, key=KEY).estimator, Online)
    with pytest.raises(TrainerFailedError, match="no learner"):
        trainer("river_online").fit(job(params={"learner": "forest"}))


def test_leaves_and_rounds_follow_the_number_of_rows() -> None:
    params = {"max_iter": 150, "min_samples_leaf": 100}
    assert scaled(params, 50_000) == params
    assert scaled(params, 500) == {"max_iter": 100, "min_samples_leaf": 10}


def test_categories_are_numbered_at_fit_and_others_are_missing() -> None:
    seen = pl.DataFrame({"route": ["b", "a", "b", None]})
    encoder = Encoder.fit(seen, [("route", "category")])
    assert Encoder.from_json(encoder.to_json()) == encoder
    told = encoder.matrix(pl.DataFrame({"route": ["a", "b", "new", None]}))[:, 0]
    assert told.tolist()[:2] == [0.0, 1.0]
    assert np.isnan(told[2:]).all()


def test_the_rarest_of_too_many_categories_are_missing() -> None:
    names = [f"c{at:03d}" for at in range(300)]
    seen = pl.DataFrame({"route": names + names[:254]})
    encoder = Encoder.fit(seen, [("route", "category")])
    assert encoder.columns[0].categories == tuple(names[:254])


def test_constants_fill_the_columns_that_a_recipe_added() -> None:
    rows = small_rows(5).with_columns(contract_version=pl.lit(1.0))
    done = job(rows=rows, kinds=(*KINDS, ("contract_version", "number")))
    fitted = trainer("sklearn_hgb").fit(done)
    predictor = Predictor(fitted.estimator, fitted.encoder, BINARY, {"contract_version": 2.0}, {})
    assert predictor.feature_names == ("delay", "load", "route")
    plain = predictor.predict(rows.drop("contract_version"))
    told = predictor.predict(rows.with_columns(contract_version=pl.lit(2.0)))
    assert (plain.scores == told.scores).all()
    assert asdict(BINARY)["positive"] == "late"
