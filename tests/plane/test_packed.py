"""Packed byte strings are the byte strings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.plane.packed import Packed

TEXTS = st.lists(st.none() | st.binary(max_size=5), max_size=12)


@given(texts=TEXTS, first=st.integers(0, 12), after=st.integers(0, 12))
def test_what_was_packed_comes_out_whole_and_in_part(texts: list[bytes | None], first: int, after: int) -> None:
    packed = Packed.of(texts)
    assert len(packed) == len(texts)
    assert packed.tolist() == texts
    assert packed[first:after].tolist() == texts[first:after]
    assert [packed.at(i) for i in range(len(texts))] == texts


@given(pieces=st.lists(TEXTS, min_size=1, max_size=4))
def test_pieces_are_joined_in_their_order(pieces: list[list[bytes | None]]) -> None:
    assert Packed.join([Packed.of(piece) for piece in pieces]).tolist() == [text for piece in pieces for text in piece]
