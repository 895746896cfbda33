"""Installations to look at: one that has seen nothing, one with six days behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.testing.served import World, bare_world, serve


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[World]:
    """A configured model that has seen nothing yet."""
    world = bare_world(tmp_path)
    yield world
    world.engine.dispose()


@pytest.fixture
def world(bare: World) -> World:
    """Six days served by v1 in two partitions: the first half is folded, the second still open."""
    return serve(bare)
