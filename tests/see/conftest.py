"""Installations to look at: one that has seen nothing, one with six days behind it; tests work on copies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.testing.served import World, bare_world, open_world, serve


@pytest.fixture(scope="session")
def bare_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bare")
    bare_world(root).engine.dispose()
    return root


@pytest.fixture(scope="session")
def served_root(bare_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served") / "world"
    shutil.copytree(bare_root, root)
    serve(open_world(root)).engine.dispose()
    return root


def _copy(root: Path, place: Path) -> Iterator[World]:
    shutil.copytree(root, place)
    world = open_world(place)
    yield world
    world.engine.dispose()


@pytest.fixture
def bare(bare_root: Path, tmp_path: Path) -> Iterator[World]:
    """A configured model that has seen nothing yet."""
    yield from _copy(bare_root, tmp_path / "bare")


@pytest.fixture
def world(served_root: Path, tmp_path: Path) -> Iterator[World]:
    """Six days served by v1 in two partitions: the first half is folded, the second still open."""
    yield from _copy(served_root, tmp_path / "world")
