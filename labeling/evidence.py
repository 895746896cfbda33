"""What speaks for or against an input: its difference from the truth feed, and from its contract. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labeling.items import Value
from schemas.contract import Contract, Field


@dataclass(frozen=True)
class Difference:
    """An input beside the value that the truth feed reported later for the same thing."""

    feature: str
    fact: str
    given: float | None
    true: float
    tolerance: float

    @property
    def by(self) -> float | None:
        """Input minus truth feed; None for an input that was missing."""
        return None if self.given is None else self.given - self.true

    @property
    def is_beyond(self) -> bool:
        """Whether they differ by more than the contract's tolerance."""
        return self.by is not None and abs(self.by) > self.tolerance

    @property
    def size(self) -> float:
        """Difference in units of the tolerance, to rank several."""
        return abs(self.by or 0.0) / (self.tolerance or 1.0)


def is_number(value: object) -> bool:
    """Whether a stored value is a number (a redacted one is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def differences(features: Mapping[str, Value], facts: Mapping[str, Value], contract: Contract) -> list[Difference]:
    """Every feature that the truth feed also reports, largest difference first."""
    found = []
    for field in contract.fields:
        true = facts.get(field.fact) if field.fact else None
        given = features.get(field.name)
        if field.fact and true is not None and is_number(true) and (given is None or is_number(given)):
            value = None if given is None else float(given)
            found.append(Difference(field.name, field.fact, value, float(true), field.allowed(float(true))))
    return sorted(found, key=lambda d: (-d.size, d.feature))


def breach(field: Field, value: Value) -> str | None:
    """How a value breaks its contract, None if it keeps it.

    >>> breach(Field("wind", "double", False, max=100.0), 1048.36)
    'above 100'
    """
    if value is None:
        return None if field.is_nullable else "missing"
    if is_number(value):
        if field.min is not None and float(value) < field.min:
            return f"below {field.min:g}"
        if field.max is not None and float(value) > field.max:
            return f"above {field.max:g}"
    if field.domain is not None and isinstance(value, str) and field.sensitivity == "none":
        return None if value in field.domain else "not in the contract"
    return None


def breaches(features: Mapping[str, Value], contract: Contract) -> dict[str, str]:
    """Feature and what is wrong with it, for all that break the contract."""
    found = ((field.name, breach(field, features.get(field.name))) for field in contract.fields)
    return {name: text for name, text in found if text is not None}


def suspect(features: Mapping[str, Value], facts: Mapping[str, Value], contract: Contract | None) -> str | None:
    """The most suspicious feature and its direction, such as ``dep_delay_known:over``; None if all agree.

    The truth feed is the stronger witness, so it is asked first.
    """
    if contract is None:
        return None
    for difference in differences(features, facts, contract):
        if difference.is_beyond:
            return f"{difference.feature}:{'over' if (difference.by or 0.0) > 0 else 'under'}"
    broken = breaches(features, contract)
    return f"{min(broken)}:contract" if broken else None


def suspect_feature(suspect_text: str | None) -> str | None:
    """The feature's name of :func:`suspect`."""
    return suspect_text.rpartition(":")[0] if suspect_text else None
