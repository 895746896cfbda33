"""``python -m streams.cli``: the console script, where it may not be installed."""

from __future__ import annotations

from streams.cli import main

main()
