"""What a quality report says in words: the same on the command line and on the page."""

from __future__ import annotations

from typing import Any


def maturity(told: dict[str, Any]) -> str:
    """When truths come."""
    if told["hours"] is None:
        return "no truth came by feedback yet"
    kinds = told["quantile_hours"]
    each = "; ".join(
        f"{name}: " + ", ".join(f"{float(share):.0%} in {_hours(value)}" for share, value in quantiles.items())
        for name, quantiles in kinds.items()
        if name != "all" or len(kinds) == 1
        if quantiles["0.5"] is not None
    )
    young = "; provisional, no cohort is old enough" if told["is_provisional"] else ""
    return f"after {_hours(told['hours'])} ({each}){young}"


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} d"


def headline(told: dict[str, Any]) -> str:
    """The one figure, how sure it is, and how it was come by."""
    metric = told["metric"]
    if told["kind"] == "unknown":
        labels = told.get("effective", 0.0)
        return (
            f"{metric} is not known: {labels:.0f} of {told.get('labels_needed', 100)} effective labels of the random"
            f" audit ({told.get('picked', 0):,} picked), and too few answers get their truth by themselves"
        )
    low, high = told["interval"] or (float("nan"), float("nan"))
    figure = f"{metric} {told['value']:.4f} ({low:.4f} to {high:.4f})"
    if told["kind"] == "realised":
        return f"{figure}, realised: {told['labels']:,} of {told['rows']:,} mature answers have their truth"
    return (
        f"{figure}, estimated for {told['rows']:,} answers from {told['labels']:,} of {told['picked']:,} audited"
        f" ({told['effective']:.0f} effective, {told['source']}; lambda {told['tuning']:.2f})"
    )


def expected(value: float, metric: str) -> str:
    """What the scores let expect; it is blind to the one thing that hurts most, so it says so."""
    return f"{metric} {value:.4f} of all answers, by their scores (assumes no concept drift)"


def early(told: dict[str, Any]) -> str:
    """What answers too young to be known will show."""
    base = "" if told["base"] is None else f", positives {told['base']:.4f}"
    return f"accuracy {told['accuracy']:.4f}{base} of {told['rows']:,} answers too young to be known"


def users(told: dict[str, Any]) -> str:
    """How people use the answers."""
    low, high = told["interval"]
    said = f"accepted {told['accepted']:,}, edited {told['edited']:,}, rejected {told['rejected']:,}"
    rate = f"{told['accept_rate']:.3f} ({low:.3f} to {high:.3f}) accepted"
    share = f"{told['words_share'] * 100:.1f} % of the answers were commented"
    return f"{said}; {rate}; {share}; not the error rate, people choose what to say"


def weak(told: dict[str, Any]) -> str:
    """What was looked at for weak slices."""
    head = f"{told['scanned']:,} slices of one or two fields, {told['rows']:,} rows of {told['version']}"
    head += " (the newest; there are more)" if told["is_newest_only"] else ""
    left = f"; left out: {', '.join(told['left_out'])}" if told["left_out"] else ""
    return f"{head} until {told['until']}{left}"
