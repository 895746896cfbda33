"""The command line: fast, lazy, one way to tell of an error; and the commands that begin a project."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from schemas.database import _configure_sqlite
from schemas.profile import Profile
from schemas.times import now_us
from streams.cli import COMMANDS, EXIT_INTERRUPTED, echo_json, main
from streams.config import load_config

Capture = pytest.CaptureFixture[str]


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def flywheel(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Done(int(caught.value.code or 0), out, err)

    return run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        {
            "when": f"2024-03-{1 + i // 24:02d}T{i % 24:02d}:00:00Z",
            "age": 20 + i % 50,
            "plan": "ab"[i % 2],
            "y": i % 5 == 0,
        }
        for i in range(400)
    ]
    path = tmp_path / "past.csv"
    pl.DataFrame(rows).write_csv(path)
    return path


# ---------------------------------------------------------------------- the shell


def test_help_takes_less_than_250_ms() -> None:
    assert min(_time_of_help() for _ in range(5)) < 0.25


def _time_of_help() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "streams.cli", "--help"], capture_output=True, check=True)
    return time.perf_counter() - started


def test_help_lists_every_command(flywheel: Any) -> None:
    done = flywheel("--help")
    assert done.code == 0
    assert all(f"  {name} " in done.out for name in COMMANDS)


def test_an_unknown_command_is_told_with_the_nearest(flywheel: Any) -> None:
    done = flywheel("stauts")
    assert done.code == 2
    assert "Did you mean 'status'?" in done.err
    assert done.out == ""


def test_an_error_is_told_in_one_way(flywheel: Any, tmp_path: Path) -> None:
    (tmp_path / "flywheel.toml").write_text("[flywheel]\nbroker = 'x'\n")
    done = flywheel("config", "show")
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("Error: ")
    assert "Did you mean 'brokers'?" in done.err
    assert "Traceback" not in done.err
    done = flywheel("config", "show", "--json")
    assert done.code == 2
    assert done.err == ""
    assert done.json["error"]["type"] == "ConfigError"
    assert set(done.json["error"]) == {"type", "message", "action", "exit_code"}
    done = flywheel("config", "show", "--json", "--wrong")
    assert done.code == 2
    assert "--wrong" in done.json["error"]["message"]


def test_an_interrupt_ends_without_a_traceback(flywheel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("streams.config.load_config", interrupt)
    done = flywheel("config", "show")
    assert done.code == EXIT_INTERRUPTED == 130
    assert "Traceback" not in done.err


def test_json_is_json_whatever_the_figures_are(capsys: Capture) -> None:
    echo_json({"a": [float("nan"), float("inf"), 1.5], "b": "NaN"})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == {"a": [None, None, 1.5], "b": "NaN"}


def test_a_disk_that_refuses_is_told_without_a_traceback(
    flywheel: Any, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "profile.json")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    arguments = ("init", table, "--model", "churn", "--target", "y", "--time", "when")
    done = flywheel(*arguments)
    assert done.code == 1
    assert done.err.startswith("Error: profile.json: No space left on device.\n  What was to be written")
    done = flywheel(*arguments, "--json")
    assert (done.code, done.err) == (1, "")
    assert done.json["error"]["message"] == "profile.json: No space left on device."


def test_a_database_that_cannot_be_written_is_told_without_a_traceback(
    flywheel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flywheel.toml").write_text("[flywheel]\n")
    assert flywheel("alerts", "silence", "--for", "1h", "--channel", "drift").code == 0

    def only_read(connection: Any, _: Any) -> None:
        _configure_sqlite(connection, _)
        connection.execute("PRAGMA query_only=ON")

    monkeypatch.setattr("schemas.database._configure_sqlite", only_read)
    done = flywheel("alerts", "silence", "--for", "1h", "--channel", "drift")
    assert done.code == 1
    assert done.err.startswith("Error: The database refused: attempt to write a readonly database.\n")
    assert "Traceback" not in done.err


def test_where_nothing_is_configured_nothing_is_written(flywheel: Any, tmp_path: Path) -> None:
    for command in (
        ("alerts", "silence", "--for", "1h", "--channel", "drift"),
        ("alerts", "ack", "x"),
        ("alerts", "close", "x", "--as", "fixed"),
        ("alerts", "unsilence", "x"),
        ("dead-letters", "replay", "--all"),
    ):
        done = flywheel(*command)
        assert done.code == 2
        assert f"There is no flywheel.toml in {tmp_path}" in done.err
        assert list(tmp_path.iterdir()) == []


def test_where_there_is_nothing_to_look_at_every_command_ends_with_two(flywheel: Any, table: Path) -> None:
    assert flywheel("init", table, "--model", "m", "--target", "y", "--time", "when").code == 0
    for command, words in (("drift", "Nothing was served"), ("parity", "no event of"), ("backtest", "no champion")):
        done = flywheel(command, "--json")
        assert (done.code, done.err) == (2, "")
        assert words in done.json["error"]["message"]


def test_what_backtest_is_to_run_with_is_checked_by_name(flywheel: Any, table: Path) -> None:
    assert flywheel("init", table, "--model", "m", "--target", "y", "--time", "when").code == 0
    for options, words in (
        (("--set", "drift_zz=3"), "has no key 'drift_zz'. Did you mean 'drift_z'?"),
        (("--set", "qqqqqqqq=3"), "has no key 'qqqqqqqq'. See 'flywheel config schema'."),
        (("--rule", "psi:abc"), "'abc' in 'psi:abc' is neither a limit nor a window's length"),
        (("--rule", "psi:0.1:abc"), "'abc' in 'psi:0.1:abc' is not a window's length"),
    ):
        done = flywheel("backtest", *options, "--json")
        assert done.code == 2
        assert words in done.json["error"]["message"]


def test_the_figures_of_a_demo_are_printed_before_its_page_stays_up(
    flywheel: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = ""

    class Kept:
        def wait(self) -> None:
            nonlocal printed
            printed = capsys.readouterr().out
            raise KeyboardInterrupt

    def run(*_: object, at_end: Any, **__: object) -> None:
        at_end({"versions": 2}, "http://127.0.0.1:1/")

    monkeypatch.setattr("streams.demo.story.run", run)
    monkeypatch.setattr("streams.log.configure", lambda _: None)  # of the whole process
    assert flywheel("demo", "--json").json == {"versions": 2}
    monkeypatch.setattr("streams.cli.demo.threading.Event", Kept)
    assert flywheel("demo", "--json", "--keep").code == EXIT_INTERRUPTED
    assert json.loads(printed) == {"versions": 2}


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "config", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert err == b""


# ---------------------------------------------------------------------- config


def test_the_configuration_is_shown_with_its_secrets_hidden(flywheel: Any, tmp_path: Path) -> None:
    (tmp_path / "flywheel.toml").write_text("[flywheel]\ndatabase = 'postgresql://me:hush@host/db'\n")
    shown = flywheel("--state-dir", "elsewhere", "config", "show")
    assert 'state_dir = "' in shown.out
    assert f"{tmp_path}/elsewhere" in shown.out
    assert "hush" not in shown.out
    as_json = flywheel("config", "show", "--json")
    assert as_json.json["brokers"] == "embedded"
    assert "hush" not in as_json.out


def test_the_schema_of_the_file_is_printed(flywheel: Any) -> None:
    schema = flywheel("config", "schema").json
    assert "state_dir" in schema["properties"]["flywheel"]["properties"]
    assert schema["$defs"]["ModelConfig"]["additionalProperties"] is False
    assert schema["$defs"]["ModelConfig"]["required"] == ["contract"]


def test_validation_reads_what_the_file_names(flywheel: Any, table: Path, tmp_path: Path) -> None:
    assert flywheel("config", "validate").code == 0
    assert flywheel("init", table, "--model", "m", "--target", "y", "--time", "when").code == 0
    assert flywheel("config", "validate", "--json").json["models"] == ["m"]
    file = tmp_path / "flywheel.toml"
    text = file.read_text()
    file.write_text(text.replace("score > 0.9", "scroe > 0.9"))
    done = flywheel("config", "validate")
    assert done.code == 2
    assert "sure_and_wrong" in done.err
    for kind in ("profile.json", "base.parquet"):
        assert f"/{kind}" in text
        file.write_text(text.replace(f"/{kind}", f"/no-{kind}"))
        done = flywheel("config", "validate")
        assert done.code == 2
        assert f"m/no-{kind}" in done.err
    file.write_text(text)
    (tmp_path / "m" / "contract.avsc").write_text("{}")
    done = flywheel("config", "validate")
    assert done.code == 2
    assert "m/contract.avsc is not an Avro record" in done.err


# ---------------------------------------------------------------------- init


def test_init_writes_what_the_other_commands_need(flywheel: Any, table: Path, tmp_path: Path) -> None:
    done = flywheel("init", table, "--model", "m", "--target", "y", "--time", "when", "--slice", "plan")
    assert done.code == 0
    assert "flywheel up" in done.out
    config = load_config(tmp_path / "flywheel.toml")
    model = config.model("m")
    assert model.contract.feature_names == ("age", "plan")
    assert model.columns.time == "when"
    assert isinstance(model.profile, Profile)
    assert model.profile.fingerprint == model.contract.fingerprint
    assert model.reference is not None
    base = pl.read_parquet(model.reference)
    assert base.columns == ["prediction_id", "event_time", "age", "plan", "label"]
    assert base.height == 400
    assert list(model.failures) == ["sure_and_wrong"]


def test_init_never_overwrites_unless_forced(flywheel: Any, table: Path, tmp_path: Path) -> None:
    assert flywheel("init", table, "--model", "m", "--target", "y", "--time", "when").code == 0
    (tmp_path / "flywheel.toml").write_text((tmp_path / "flywheel.toml").read_text() + "\n# mine\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = flywheel("init", table, "--model", "m", "--target", "y", "--time", "when")
    assert done.code == 2
    assert "would be overwritten" in done.err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert flywheel("init", table, "--model", "m", "--target", "y", "--time", "when", "--force").code == 0
    assert (tmp_path / "flywheel.toml").read_bytes() == before[tmp_path / "flywheel.toml"]


def test_a_second_model_is_added_to_the_same_file(flywheel: Any, table: Path, tmp_path: Path) -> None:
    assert flywheel("init", table, "--model", "m", "--target", "y", "--time", "when").code == 0
    done = flywheel("init", table, "--model", "other.model", "--target", "plan", "--time", "when", "--json")
    assert done.code == 0
    assert done.json["target"]["kind"] == "binary"
    assert set(load_config(tmp_path / "flywheel.toml").models) == {"m", "other.model"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv", "--model", "m", "--target", "y"], "There is no file none.csv"),
        (["past.csv", "--model", "m", "--target", "z"], "no column 'z'"),
        (["past.csv", "--model", "a/b", "--target", "y"], "is not a model name"),
        (["past.csv", "--model", "m", "--target", "y", "--timezone", "x"], "not a time zone"),
        (["past.csv", "--model", "m"], "Missing option '--target'"),
    ],
)
def test_init_that_cannot_be_done_writes_nothing(
    flywheel: Any, table: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = flywheel("init", *arguments)
    assert done.code == 2
    assert message in done.err
    assert [path.name for path in tmp_path.iterdir()] == [table.name]


# ---------------------------------------------------------------------- up


def test_up_is_stopped_by_its_signal_and_leaves_nothing(tmp_path: Path) -> None:
    sleeper = tmp_path / "sitecustomize.py"
    sleeper.write_text(
        "import streams.supervisor as s, sys\n"
        "s.worker_command = lambda parent: [sys.executable, '-c', 'import signal; signal.pause()']\n"
        "s.Supervisor.__init__.__kwdefaults__['command'] = s.worker_command\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "up", "--web-port", "0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = ""
    while "Ctrl-C" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    up_file = tmp_path / ".flywheel" / "up.json"
    assert json.loads(up_file.read_text())["started_us"] <= now_us()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Stopped." in err
    assert "Traceback" not in seen + err
    assert not up_file.exists()
