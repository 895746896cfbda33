"""A profile as a person may have edited it: what could not be counted with is refused, in words.

A count that is NaN or an edge out of order would break nothing and find nothing; so they are looked for here.
"""

from __future__ import annotations

import math
from itertools import pairwise

from schemas.profile import CATEGORY_SPECIALS, NUMBER_SPECIALS, FeatureProfile, Profile

KINDS = ("number", "category", "boolean")


def read_profile(text: str) -> Profile:
    """The profile that :meth:`Profile.to_json` wrote.

    Raises
    ------
    ValueError
        If it is not JSON, not a profile, or one whose counts, weights or edges cannot be.
    """
    try:
        profile = Profile.from_json(text)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no profile ({type(error).__name__}: {error})") from error
    for feature in profile.features:
        problem = _problem(feature)
        if problem is not None:
            raise ValueError(f"of '{feature.name}' {problem}")
    return profile


def _problem(feature: FeatureProfile) -> str | None:
    edges = feature.edges
    expected = NUMBER_SPECIALS + len(edges) + 1 if feature.is_number else CATEGORY_SPECIALS + len(feature.names)
    if feature.kind not in KINDS:
        return f"the kind is none of {', '.join(KINDS)}"
    if not all(isinstance(edge, int | float) and math.isfinite(edge) for edge in edges):
        return "the edges are not all finite numbers"
    if any(low >= high for low, high in pairwise(edges)):
        return "the edges do not increase"
    if not len(feature.counts) == len(feature.weights) == expected:
        return f"there are not {expected} counts and weights, one a cell"
    if not all(isinstance(count, int) and count >= 0 for count in feature.counts):
        return "the counts are not all whole numbers from 0"
    if not all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in feature.weights):
        return "the weights are not all finite numbers from 0"
    return None
