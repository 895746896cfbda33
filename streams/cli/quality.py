"""``flywheel quality``: how good the answers are, per version and slice, and how sure one can be of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from streams import sentences
from streams.cli import Session, echo_json, echo_lines, json_option, moment, pass_session

if TYPE_CHECKING:
    from streams.config import Config

SLICE_CHARS = 24
CONFUSION_MAX = 8


@click.command()
@click.option("--model", help="Only this model; default: all.")
@click.option("--version", help="Only this version; default: all that answered in the span.")
@click.option("--slice", "slice_name", help="Only this slice (field=value); default: all rows and the declared ones.")
@click.option("--weak", is_flag=True, help="Look now for undeclared slices that are answered worse.")
@click.option("--since", "since_us", callback=moment, help="From this local day on; default: the last seven days.")
@json_option
@pass_session
def quality(
    session: Session,
    model: str | None,
    version: str | None,
    slice_name: str | None,
    weak: bool,
    since_us: int | None,
    as_json: bool,
) -> None:
    """Show quality per version and slice: the headline with its interval, coverage, maturity, calibration.

    Intervals are valid however often you look. With --version or --slice there are also the confusion matrix, the
    figures of each label and the reliability diagram.
    """
    from schemas.errors import UsageError
    from schemas.times import from_us
    from streams.quality import QualityReader, Wanted
    from streams.status import looking_at, open_status

    config = session.load()
    if model is not None:
        config.model(model)
    names = sorted(config.models) if model is None else [model]
    if not names:
        raise UsageError("No model is configured.", action="Begin with 'flywheel init'.")
    reader = open_status(config)
    wanted = Wanted(version, slice_name, None if since_us is None else from_us(since_us).date())
    try:
        with looking_at(reader.engine) as connection:
            told = {name: QualityReader(config, reader.windows).gather(connection, name, wanted) for name in names}
        for name, each in told.items():
            if each is not None:
                each["weak"] = _weak_slices(config, name, each, version, is_asked=weak)
    finally:
        reader.engine.dispose()
    if as_json:
        echo_json({"models": told})
        return
    is_close = version is not None or slice_name is not None
    for at, (name, each) in enumerate(told.items()):
        echo_lines([*([""] if at else []), *lines(name, each, is_close=is_close)])


def _weak_slices(
    config: Config, name: str, told: dict[str, Any], version: str | None, *, is_asked: bool
) -> dict[str, Any] | None:
    """A look now if that was asked for, else what the worker found when it looked last."""
    from schemas.times import parse_time
    from streams.weak import last, weak_slices

    if not is_asked:
        return last(config.state_dir, name)
    return weak_slices(config, name, until_us=parse_time(told["until"]), version=version)


def lines(name: str, told: dict[str, Any] | None, *, is_close: bool = False) -> list[str]:
    """The report of one model for people."""
    if told is None:
        return [f"{name}: no prediction was monitored yet."]
    if not told["versions"]:
        return [f"{name}: nothing was answered since {told['since']}; what was, ends {told['until']}."]
    found = [f"{name}: {told['since']} to {told['until']}", f"maturity    {sentences.maturity(told['maturity'])}"]
    for version in told["versions"]:
        found += ["", *_version(version, told["metric"])]
        if is_close:
            found += [line for each in version["slices"] for line in _closely(each)]
    return found + (_weak(told["weak"], told["metric"]) if told.get("weak") else [])


def _weak(weak: dict[str, Any], metric: str) -> list[str]:
    if not weak["slices"]:
        return ["", f"weak slices none, of {sentences.weak(weak)}"]
    error = "error" if metric == "mae" else "wrong"
    found = ["", f"weak slices of {sentences.weak(weak)}"]
    found.append(f"{'':<48}{'rows':>8}{error:>8}{'rest':>8}{'by score':>10}{'difference at least':>21}  worst")
    for each in weak["slices"]:
        figures = f"{each['error']:>8.3f}{each['rest']:>8.3f}{_figure(each['expected']):>10}{each['low']:>+21.3f}"
        found.append(f"{each['name'][:47]:<48}{each['rows']:>8,}{figures}  {' '.join(each['ids'][:2])}")
    return found


def _version(version: dict[str, Any], metric: str) -> list[str]:
    whole = version["slices"][0]
    found = [
        f"version     {version['version']}, {whole['slice']}",
        f"headline    {sentences.headline(whole['headline'])}",
        *(f"beside      {sentences.headline(each)}" for each in whole["beside"] if each["value"] is not None),
    ]
    if whole["expected"] is not None:
        found.append(f"expected    {sentences.expected(whole['expected'], metric)}")
    if whole["early"] and whole["early"]["accuracy"] is not None:
        found.append(f"provisional {sentences.early(whole['early'])}")
    if version["users"] is not None:
        found.append(f"users       {sentences.users(version['users'])}")
    found += ["", *_slices(version["slices"]), *_series(version["days"], metric)]
    found += _fairness(version["fairness"])
    return found


def _slices(slices: list[dict[str, Any]]) -> list[str]:
    is_regression = all(each["mae"] is not None or each["mature_rows"] == 0 for each in slices)
    columns = ("mae", "rmse", "bias") if is_regression else ("log_loss", "brier", "auc", "ece", "bias")
    head = f"{'slice':<{SLICE_CHARS}}{'n':>9}{'known':>8}{'mature':>8}{'headline':>10}{'interval':>18}"
    found = [head + "".join(f"{name.replace('_', ' '):>9}" for name in columns)]
    for each in slices:
        top = each["headline"]
        interval = "-" if top["interval"] is None else "{:.3f} to {:.3f}".format(*top["interval"])
        value = f"{top['value']:.3f}{'' if top['kind'] == 'realised' else '~'}" if top["value"] is not None else "-"
        mature = each["mature_rows"] / each["rows"] if each["rows"] else None
        row = f"{each['slice'][: SLICE_CHARS - 1]:<{SLICE_CHARS}}{each['rows']:>9,}{_percent(each['coverage']):>8}"
        row += f"{_percent(mature):>8}{value:>10}{interval:>18}"
        found.append(
            row + "".join(f"{_figure(each[name], '+.3f' if name == 'bias' else '.3f'):>9}" for name in columns)
        )
    return found


def _series(days: list[dict[str, Any]], metric: str) -> list[str]:
    if not any(day["expected"] is not None for day in days):
        return []
    found = ["", f"{'day':<12}{'n':>9}{'known':>8}{metric:>10}{'expected':>10}{'expected less realised':>36}"]
    for day in days:
        gap = "-"
        if day["difference"] is not None:
            low, high = day["interval"]
            gap = f"{day['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
        row = f"{day['day']:<12}{day['rows']:>9,}{_percent(day['coverage']):>8}{_figure(day['realised']):>10}"
        found.append(f"{row}{_figure(day['expected']):>10}{gap:>36}")
    return found


def _fairness(pairs: list[dict[str, Any]]) -> list[str]:
    found = []
    for pair in pairs:
        first, second = pair["groups"]
        found += ["", f"{first + ' and ' + second:<44}{'first':>9}{'second':>9}{'difference':>30}{'ratio':>26}"]
        for gap in pair["measures"]:
            row = f"{gap['measure'].replace('_', ' ') + ' ({:,} and {:,} rows)'.format(*gap['rows']):<44}"
            if gap["values"] is None:
                found.append(f"{row} too few rows")
                continue
            row += "".join(f"{value:>9.3f}" for value in gap["values"])
            difference = f"{gap['difference']:+.3f} ({{:+.3f}} to {{:+.3f}})".format(*gap["difference_interval"])
            has_ratio = gap["ratio"] is not None and gap["ratio_interval"] is not None
            ratio = f"{gap['ratio']:.2f} ({{:.2f}} to {{:.2f}})".format(*gap["ratio_interval"]) if has_ratio else "-"
            found.append(f"{row}{difference:>30}{ratio:>26}")
    return found


def _closely(each: dict[str, Any]) -> list[str]:
    found = []
    if each["confusion"] and len(each["confusion"]) <= CONFUSION_MAX:
        labels = list(each["confusion"])
        found += ["", f"{each['slice']}: answered \\ true".ljust(28) + "".join(f"{label[:12]:>13}" for label in labels)]
        found += [f"{p[:26]:<28}" + "".join(f"{row[t]:>13,}" for t in labels) for p, row in each["confusion"].items()]
    if each["classes"]:
        found += ["", f"{'label':<28}{'answered':>10}{'true':>10}{'precision':>11}{'recall':>9}{'F1':>9}"]
        for c in each["classes"]:
            scores = f"{_figure(c['precision']):>11}{_figure(c['recall']):>9}{_figure(c['f1']):>9}"
            found.append(f"{c['label'][:26]:<28}{c['predicted']:>10,}{c['true']:>10,}{scores}")
    if each["reliability"]:
        found += ["", f"{'reliability: rows':<18}{'mean score':>12}{'came true':>11}{'95 %':>18}"]
        for r in each["reliability"]:
            interval = "{:.3f} to {:.3f}".format(*r["interval"])
            found.append(f"{r['rows']:<18,}{r['score']:>12.3f}{r['observed']:>11.3f}{interval:>18}")
    return found


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.1f} %"


def _figure(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)
