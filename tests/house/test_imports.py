"""Import hygiene that the import rules in pyproject.toml cannot express."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "polars",
    "numpy",
    "scipy",
    "sklearn",
    "river",
    "sqlalchemy",
    "faust",
    "aiokafka",
    "confluent_kafka",
    "pydantic",
}


def modules_after(statement: str) -> set[str]:
    """Top-level names of everything that a fresh interpreter holds after a statement and not before it."""
    program = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint('\\n'.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_client_can_be_copied_into_a_service() -> None:
    tree = ast.parse((ROOT / "streams" / "client.py").read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import breaks in a copy"
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names <= {"confluent_kafka", "fastavro"}


@pytest.mark.parametrize("module", ["schemas.errors", "schemas.times", "streams.config", "streams.cli"])
def test_what_every_command_loads_is_light(module: str) -> None:
    assert modules_after(f"import {module}") & (HEAVY - {"pydantic"}) == set()


@pytest.mark.parametrize("package", ["schemas", "labeling", "retrain", "streams"])
def test_a_package_by_itself_loads_nothing(package: str) -> None:
    loaded = modules_after(f"import {package}") - set(sys.stdlib_module_names)
    assert loaded <= {"schemas", package}


def test_no_test_folder_shadows_a_package_and_no_test_imports_another() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                is_program = not {"bench", "calibrate", "chaos"}.isdisjoint(file.parts)  # run by make, in parts
                assert str(node.module).partition(".")[0] != "tests" or is_program, file
    assert not (ROOT / "tests" / "__init__.py").exists()
