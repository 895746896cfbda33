"""``flywheel schemas``: what is released, and whether a change may follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.events import NOUNS, envelope
from streams.cli import main

FIELDS = [{"name": "age", "type": "double"}, {"name": "plan", "type": "string"}]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flywheel.toml").write_text("[models.m]\ncontract = 'm.avsc'\n")
    write(tmp_path / "m.avsc", FIELDS)
    return tmp_path


def write(path: Path, fields: list[dict[str, Any]]) -> Path:
    head = {"type": "record", "name": "M", "model": "m", "target": {"kind": "regression"}}
    path.write_text(json.dumps({**head, "fields": fields}))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["schemas", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_list_says_what_is_released(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "--json")
    assert code == 0
    assert {row["state"] for row in json.loads(out)} == {"new"}
    assert len(json.loads(out)) == len(NOUNS)
    assert run(capsys, "register")[0] == 0
    code, out, _ = run(capsys, "list", "--json")
    assert {row["state"] for row in json.loads(out)} == {"released"}
    write(project / "m.avsc", [*FIELDS, {"name": "new", "type": ["null", "long"], "default": None}])
    (line,) = [line for line in run(capsys, "list")[1].splitlines() if line.startswith("flywheel.inputs.v1-m ")]
    assert line.split()[1:] == ["versions", "1", "compatible"]


def test_show_knows_topics_models_subjects_and_ids(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("predictions", "flywheel.predictions.v1-value"):
        assert json.loads(run(capsys, "show", name)[1]) == envelope("predictions")
    assert json.loads(run(capsys, "show", "m")[1])["fields"][-1]["type"]["name"] == "M"
    code, _, err = run(capsys, "show", "prediction")
    assert code == 2
    assert "Did you mean 'predictions'?" in err
    assert run(capsys, "show", "1", "--id")[0] == 1
    run(capsys, "register")
    assert json.loads(run(capsys, "show", "1", "--id")[1])["type"] == "record"
    assert run(capsys, "show", "x", "--id")[0] == 2


def test_an_incompatible_change_is_refused_with_every_problem(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "register")
    changed = write(
        project / "next.avsc", [{"name": "age", "type": "string"}, FIELDS[1], {"name": "new", "type": "long"}]
    )
    code, out, err = run(capsys, "check", changed)
    assert code == 4
    assert "'features.age' was double and is string; " in err
    assert "'features.new' is new and has no default" in err
    assert out == ""
    code, out, _ = run(capsys, "check", changed, "--json")
    assert code == 4
    assert json.loads(out)["error"]["exit_code"] == 4
    assert run(capsys, "register", changed)[0] == 4
    assert run(capsys, "check")[0] == 0


def test_a_compatible_change_may_be_registered(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "register")
    changed = write(project / "next.avsc", [*FIELDS, {"name": "new", "type": ["null", "long"], "default": None}])
    code, out, _ = run(capsys, "check", changed)
    assert (code, out) == (0, "flywheel.inputs.v1-m: compatible\n")
    assert run(capsys, "register", changed)[0] == 0
    assert run(capsys, "check", changed)[1] == "flywheel.inputs.v1-m: released\n"


def test_a_file_that_is_no_contract_is_a_usage_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "bad.avsc").write_text('{"type": "record"}')
    code, _, err = run(capsys, "check", "bad.avsc")
    assert code == 2
    assert "has no 'name'" in err
    assert run(capsys, "check", "none.avsc")[0] == 2
