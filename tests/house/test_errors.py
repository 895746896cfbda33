"""Every error that an operator may meet says what happened, what to do, and what the system does with it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

from schemas.errors import Disposition, FlywheelError

PACKAGES = ("schemas", "labeling", "retrain", "streams")


def error_modules() -> Iterator[str]:
    """Names of the modules of ours that define errors: those called `errors`, and those that say so in their source."""
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            finder = module.module_finder.find_spec(module.name, None)
            loader = finder.loader if finder else None
            source = getattr(loader, "get_source", lambda name: "")(module.name) or ""
            if "Error):" in source:
                yield module.name


def leaves(base: type[FlywheelError]) -> Iterator[type[FlywheelError]]:
    below = [kind for kind in base.__subclasses__() if kind.__module__.partition(".")[0] in PACKAGES]
    if not below:
        yield base
    for kind in below:
        yield from leaves(kind)


for name in error_modules():
    importlib.import_module(name)
LEAVES = sorted(set(leaves(FlywheelError)), key=lambda kind: kind.__qualname__)


def test_there_are_errors_to_look_at() -> None:
    assert len(LEAVES) > 10


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__qualname__)
def test_an_error_says_what_happened_and_what_to_do(kind: type[FlywheelError]) -> None:
    assert kind.__name__.endswith("Error")
    assert "__doc__" in vars(kind), "the docstring is the default message, so a leaf has its own"
    assert kind.__doc__
    message = inspect.cleandoc(kind.__doc__)
    assert message.endswith(".")
    assert "\n" not in message.strip()
    assert kind.action.endswith(".")
    assert kind.action in str(kind())
    assert message in str(kind())


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__qualname__)
def test_an_error_has_a_disposition_and_an_exit_code(kind: type[FlywheelError]) -> None:
    assert isinstance(kind.disposition, Disposition)
    assert kind.exit_code in (1, 2, 3, 4)
