"""The configuration: where it comes from, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import ConfigError
from streams.config import find_file, load_config, toml_schema


def toml(folder: Path, text: str) -> Path:
    file = folder / "flywheel.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config()
    assert config.file is None
    assert config.is_embedded
    assert config.state_dir == tmp_path / ".flywheel"
    assert config.database_url == f"sqlite:///{tmp_path}/.flywheel/flywheel.db"
    assert config.models == {}


def test_the_file_is_found_from_a_folder_below_and_its_paths_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml(tmp_path, '[flywheel]\nstate_dir = "state"\n[models.m]\ncontract = "contracts/m.avsc"\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    config = load_config()
    assert find_file() == config.file == tmp_path / "flywheel.toml"
    assert config.state_dir == tmp_path / "state"
    assert config.model("m").contract_path == tmp_path / "contracts" / "m.avsc"
    assert config.model("m").name == "m"
    assert not config.model("m").has_profile


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml(tmp_path, '[flywheel]\nbrokers = "file:1"\nweb_port = 1\ngroup = "g"\n')
    monkeypatch.setenv("FLYWHEEL_BROKERS", "env:1")
    monkeypatch.setenv("FLYWHEEL_WEB_PORT", "2")
    config = load_config(file, web_port=3, group=None)
    assert (config.brokers, config.web_port, config.group) == ("env:1", 3, "g")


def test_the_environment_reaches_into_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml(tmp_path, '[models.m]\ncontract = "m.avsc"\n[models.m.failures]\nwrong = "label <> truth"\n')
    monkeypatch.setenv("FLYWHEEL_MODELS__M__REFERENCE", "base.parquet")
    model = load_config(file).model("m")
    assert model.reference == tmp_path / "base.parquet"
    assert model.failures == {"wrong": "label <> truth"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[flywheel]\nbroker = 'x'\n", "unknown key 'flywheel.broker'. Did you mean 'brokers'?"),
        ("[models.m]\ncontract = 'x'\nfailure = {}\n", "unknown key 'models.m.failure'. Did you mean 'failures'?"),
        ("[models.m]\nprofile = 'x'\n", "'models.m.contract' is missing."),
        (
            "[models.m]\ncontract = 'x'\n[models.m.retrain]\nmin_labels = 3\n",
            "unknown key 'models.m.retrain.min_labels'. Did you mean 'min_new_labels'?",
        ),
        ("[models.m]\ncontract = 'x'\n[models.m.retrain]\ncron = 'x'\n", "'models.m.retrain.cron': not a cron"),
        ("[flywhel]\n", "unknown table 'flywhel'. Did you mean 'flywheel'?"),
        ("[flywheel]\nroot = '/'\n", "unknown key 'flywheel.root'"),
        ("[flywheel]\nwindow_s = 7\n", "'flywheel.window_s': must divide a day"),
        ("[flywheel]\nbrokers = 'localhost'\n", "must be 'embedded' or host:port"),
        ("[flywheel]\nbrokers = 'a:1,b'\n", "must be 'embedded' or host:port"),
        ("[flywheel]\nregistry = 'localhost:8081'\n", "must be 'files' or an http(s) URL"),
        ("[flywheel]\npartitions = 'many'\n", "'flywheel.partitions'"),
        ("[flywheel]\naudit_share = 2\n", "'flywheel.audit_share'"),
        ("[models.m]\ncontract = 'x'\nfailures = {r = ' '}\n", "the rule 'r' is empty"),
        ("models = 3\n", "'models' must be a table"),
        ("[models]\nm = 3\n", "'models.m' must be a table"),
        ("[flywheel\n", "is not TOML"),
    ],
)
def test_what_is_not_valid_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(toml(tmp_path, text))
    assert message in str(caught.value)
    assert "flywheel.toml" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_variable_that_is_nearly_known_is_refused_and_a_foreign_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toml(tmp_path, "")
    monkeypatch.setenv("FLYWHEEL_CI", "1")
    load_config(file)
    monkeypatch.setenv("FLYWHEEL_BROKER", "x")
    with pytest.raises(ConfigError, match="Did you mean FLYWHEEL_BROKERS"):
        load_config(file)


def test_a_missing_file_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "other.toml")


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    config = load_config(toml(tmp_path, "[flywheel]\ndatabase = 'postgresql+psycopg://me:hush@host/db'\n"))
    assert "hush" not in repr(config)
    assert "hush" not in config.model_dump_json()
    assert config.database_url.endswith("me:hush@host/db")


def test_it_is_frozen(tmp_path: Path) -> None:
    config = load_config(toml(tmp_path, ""))
    with pytest.raises(Exception, match="frozen"):
        config.group = "x"


def test_an_unknown_model_is_named_with_its_nearest(tmp_path: Path) -> None:
    config = load_config(toml(tmp_path, "[models.flights]\ncontract = 'x'\n"))
    with pytest.raises(ConfigError, match="Did you mean 'flights'"):
        config.model("flight")


def test_the_audit_share_of_a_model_is_its_own_or_the_common_one(tmp_path: Path) -> None:
    text = "[flywheel]\naudit_share = 0.2\n[models.a]\ncontract = 'x'\n[models.b]\ncontract = 'x'\n"
    config = load_config(toml(tmp_path, text + "[models.b.labeling]\naudit_share = 0.5\nrequired_n = 2\n"))
    assert config.model("a").labeling.audit_share == 0.2
    assert config.model("b").labeling.audit_share == 0.5
    assert config.model("b").labeling.required_n == 2


def test_workers_that_share_a_state_directory_have_a_join_store_and_a_lock_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toml(tmp_path, '[flywheel]\nstate_dir = "shared"\n')
    alone = load_config()
    assert (alone.join_dir, alone.worker_lock) == (tmp_path / "shared" / "join", tmp_path / "shared" / "join.lock")
    monkeypatch.setenv("FLYWHEEL_JOIN_STORE", "own/join")
    second = load_config()
    assert (second.join_dir, second.worker_lock) == (tmp_path / "own" / "join", tmp_path / "own" / "join.lock")
    assert second.archive_dir == alone.archive_dir


def test_every_key_says_what_it_is() -> None:
    schema = toml_schema()
    tables = {"flywheel": schema["properties"]["flywheel"], **schema["$defs"]}
    keys = [(f"{table}.{name}", key) for table, found in tables.items() for name, key in found["properties"].items()]
    assert [name for name, key in keys if "description" not in key and "$ref" not in key] == []
