"""``flywheel backtest``: what rules for alerts would have done, before they are turned on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import UsageError
from streams.cli import Session, echo_json, echo_lines, json_option, moment, pass_session
from streams.cli.columns import column_options, columns_of, only_model, start_us_of

if TYPE_CHECKING:
    from streams.config import Config
    from streams.lab.backtest import Found
    from streams.lab.planted import Kind
    from streams.lab.recording import Recording
    from streams.lab.rules import Rule
    from streams.logic.policy import MonitorPolicy

PLANTED = 24
PAGES_SHOWN = 20
TENTHS = 10
NONE = "none"
PICTURES = (".svg", ".html")


def picture(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """An option's callback: a file whose name says what is drawn."""
    if path is not None and path.suffix not in PICTURES:
        raise click.BadParameter(f"'{path}' ends neither in .svg nor in .html.")
    if path is not None and not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder '{path.parent}'.")
    return path


plot_option = click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), callback=picture, metavar="FILE",
    help="Draw it: .svg, or .html with the figures.",
)  # fmt: skip


@click.command()
@click.argument("table", type=click.Path(path_type=Path), required=False)
@click.option("--model", help="Which; may be left out if there is only one.")
@click.option("--version", help="Whose answers; default: the champion's, of a table its own.")
@click.option("--since", "since_us", callback=moment, metavar="TIME", help="Watch from then on, and learn from before.")
@click.option("--until", "until_us", callback=moment, metavar="TIME", help="Only rows asked before then.")
@click.option("--learn-from", "from_us", callback=moment, metavar="TIME", help="Only rows asked since then.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Of [models.NAME.monitor]; may be repeated.")
@click.option(
    "--rule", "rules", multiple=True, metavar="NAME[:LIMIT[:LENGTH]]",
    help="Beside Flywheel's: psi, ks, w1, chi2, js, adwin, such as psi:0.2:daily or ks:0.01:6h; may be repeated. "
    "Default: each at its usual limit, daily; none: none.",
)  # fmt: skip
@click.option(
    "--plant", "count", type=click.IntRange(0, 10_000), default=PLANTED, show_default=True,
    help="Changes of random features, slices and moments.",
)  # fmt: skip
@click.option(
    "--kind", "kinds", multiple=True, metavar="KIND[:SIZE]",
    help="Of the planted changes: shifted (by SIZE standard deviations), scaled (by a factor), missing, default, "
    "frozen, renamed (in that share of the rows); may be repeated. Default: all of these. Also: noisy, rounded (SIZE "
    "standard deviations), shuffled (other rows' values), respelled (lower case and a blank).",
)  # fmt: skip
@click.option("--feature", "features", multiple=True, help="Plant in these only; may be repeated.")
@click.option("--seed", default=1, show_default=True, help="Of the planted changes.")
@column_options
@plot_option
@json_option
@pass_session
def backtest(session: Session, /, table: Path | None, model: str | None, as_json: bool, **options: Any) -> None:
    """Run the monitor, and the rules that are usual elsewhere, over what is recorded of a model: how often they would
    have woken somebody, and how soon they would have told of changes that are planted in the same rows.

    With TABLE (Parquet or CSV, the columns as for 'replay') over its rows instead; that needs no broker and no worker.
    With --set the policy of flywheel.toml is run beside the changed one.
    """
    from streams.lab.backtest import backtest as run
    from streams.lab.planted import draw
    from streams.lab.plot import draw_trade_off, lines_said

    config = session.config
    name = model or only_model(config)
    policy = config.model(name).monitor
    policies = {"flywheel.toml": policy}
    if options["changes"]:
        policies["changed"] = _changed(policy, options["changes"])
    rules, kinds = _rules(options["rules"]), _kinds(options["kinds"])
    with _past(config, name, table, options) as (recording, notes):
        unknown = sorted(set(options["features"]) - set(recording.contract.feature_names))
        if unknown:
            raise click.BadParameter(f"'{unknown[0]}' is not a feature of '{name}'.", param_hint="--feature")
        plants = draw(recording, options["count"], policy.impact, options["seed"], kinds, options["features"])
        if options["count"] and not plants:
            notes += (_unplanted(recording),)
            if options["plot"] is not None:
                raise UsageError(notes[-1], action="Without planted changes there is no trade-off to draw.")
        for note in notes:
            click.echo(f"note: {note}", err=True)
        with _shown(len(policies) + len(rules) + len(plants)) as show:
            found = run(recording, policies, rules, plants, show)
    if options["plot"] is not None:
        draw_trade_off(found, f"What rules would have told: {name}", lines_said(found, name), options["plot"])
    told = _told(name, options["seed"], notes, found) | {"unjudged": dict(recording.unjudged)}
    if as_json:
        echo_json(told)
        return
    for label, each in told["policies"].items():
        echo_lines(_lines(label, each))
    echo_lines([*_beside(told["rules"]), *_unjudged(told["unjudged"])])
    if options["plot"] is not None:
        click.echo(f"drawn: {options['plot']}", err=True)


@contextmanager
def _shown(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line every tenth elsewhere; both on stderr."""
    stderr = click.get_text_stream("stderr")
    if stderr.isatty():
        with click.progressbar(length=total, label="backtest", file=stderr) as bar:
            yield bar.update
        return
    done = 0

    def line(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        if done * TENTHS // total > before * TENTHS // total:
            click.echo(f"backtest: {done} of {total} runs over the rows", err=True)

    click.echo(f"backtest: 0 of {total} runs over the rows", err=True)
    yield line


def _unplanted(recording: Recording) -> str:
    from schemas.times import DAY_US
    from streams.lab.planted import FOLLOWED_DAYS

    days = (recording.end_us - recording.start_us) / DAY_US
    if days < FOLLOWED_DAYS + 1:
        return f"Nothing was planted: {FOLLOWED_DAYS + 1} days are needed to follow a change, {days:.1f} are watched."
    return "Nothing was planted: no feature can be changed in the ways that are asked for."


def _told(name: str, seed: int, notes: tuple[str, ...], found: Found) -> dict[str, Any]:
    return {
        "model": name,
        "seed": seed,
        "notes": list(notes),
        "policies": {label: each.told() for label, each in found.policies.items()},
        "rules": {label: each.told() for label, each in found.rules.items()},
    }


@contextmanager
def _past(
    config: Config, name: str, table: Path | None, options: dict[str, Any]
) -> Iterator[tuple[Recording, tuple[str, ...]]]:
    """The past to run over, and what is to be said of it."""
    times = {"since_us": options["since_us"], "until_us": options["until_us"], "reference_from_us": options["from_us"]}
    if table is None:
        with _runtime(config) as runtime:
            from streams.lab.backtest import NoPastError, recorded

            known = runtime.models
            version = known.get(name, options["version"]) if options["version"] else known.resolve(name)
            if version is None:
                raise NoPastError(f"'{name}' has no champion, so nothing says what it would have answered.")
            yield recorded(runtime, version, **times), ()
        return
    from streams.lab.table import from_table
    from streams.past import prepare
    from streams.tabular import read_table

    contract = config.model(name).contract
    columns = columns_of(config, name, options)
    past = prepare(read_table(table), contract, columns, start_us=start_us_of(options), step_s=options["step_s"])
    if options["version"] is None:
        found = from_table(past, contract, **times)
        yield found.recording, found.notes
        return
    from streams.history import predict_of

    with _runtime(config) as runtime:
        version = runtime.models.get(name, options["version"])
        found = from_table(past, contract, **times, predict=predict_of(runtime, version), version=version.version)
        yield found.recording, found.notes


@contextmanager
def _runtime(config: Config) -> Iterator[Any]:
    from streams.runtime import Runtime

    runtime = Runtime.open(config, "", "", is_embedded=config.is_embedded)
    try:
        yield runtime
    finally:
        runtime.engine.dispose()


def _rules(texts: tuple[str, ...]) -> list[Rule]:
    """The rules that are asked for.

    Raises
    ------
    RuleError
        If one cannot be read.
    """
    from streams.lab.rules import USUAL, Rule

    if not texts:
        return list(USUAL)
    return [Rule.parse(text) for text in dict.fromkeys(texts) if text != NONE]


def _kinds(texts: tuple[str, ...]) -> dict[Kind, float | None] | None:
    """Kinds of planted changes, and their sizes.

    Raises
    ------
    UsageError
        If one cannot be read, or has an impossible size.
    """
    from streams.lab.planted import parse_kind

    return dict(parse_kind(text) for text in texts) if texts else None


def _changed(policy: MonitorPolicy, changes: tuple[str, ...]) -> MonitorPolicy:
    """The policy with some keys set as in TOML.

    Raises
    ------
    click.BadParameter
        If a key or value is not one of the policy's.
    """
    import tomllib
    from difflib import get_close_matches

    from pydantic import ValidationError

    from streams.logic.policy import MonitorPolicy

    values = policy.model_dump()
    for text in changes:
        key, _, value = text.partition("=")
        key = key.strip()
        if key not in values:
            near = get_close_matches(key, values, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else "See 'flywheel config schema'."
            raise click.BadParameter(f"[models.NAME.monitor] has no key '{key}'. {hint}", param_hint="--set")
        try:
            values[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            raise click.BadParameter(f"'{text}' is not KEY=VALUE with a value as in TOML.") from None
    try:
        return MonitorPolicy(**values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise click.BadParameter(f"'{'.'.join(map(str, problem['loc']))}': {problem['msg']}.") from None


def _lines(label: str, told: dict[str, Any]) -> list[str]:

    low, high = told["pages_a_month_interval"]
    lines = [
        f"{label}: {len(told['pages'])} pages in {told['months']:.1f} months, {told['pages_a_month']:.2f} a month"
        f" (95 % interval {low:.2f} to {high:.2f})"
    ]
    lines += [f"  {page['time']}  {page['message']}" for page in told["pages"][:PAGES_SHOWN]]
    if len(told["pages"]) > PAGES_SHOWN:
        lines.append(f"  and {len(told['pages']) - PAGES_SHOWN} more; see --json")
    if not told["planted"]:
        return [*lines, ""]
    head = f"  {'planted changes':<28}{'number':>8}{'in 4 h':>9}{'in 24 h':>9}{'in 7 d':>9}{'median':>10}"
    lines += ["", f"  {'paged':>62}{'told: page or warning':>40}", head + f"{'in 4 h':>13}{'in 24 h':>9}{'in 7 d':>9}"]
    for name, text in (("hurting", "that move the answers"), ("harmless", "that hardly do")):
        got = told[name]
        if got["planted"]:
            median = "-" if got["median_h"] is None else f"{got['median_h']:.0f} h"
            paged, said = (
                "".join(f"{each[f'within_{limit}_h']:>9.2f}" for limit in (4, 24, 168)) for each in (got, got["told"])
            )
            lines.append(f"  {text:<28}{got['planted']:>8}{paged}{median:>10}    {said}")
    named = told["hurting"]["named_right"]
    if named is not None:
        lines.append(f"  the right feature was named first in {named:.0%}")
    return [*lines, ""]


def _beside(rules: dict[str, Any]) -> list[str]:
    """The usual rules, a line each."""
    if not rules:
        return []
    found = [
        f"{'usual rules, on the':<20}{'alarms':>8}{'of':>10}{'in':>7}{'changes that move the answers':>35}"
        f"{'the others':>12}{'as quiet':>10}",
        f"{'  same rows':<20}{'a month':>8}{'features':>10}{'alarm':>7}{'in 4 h':>9}{'in 24 h':>9}{'in 7 d':>9}"
        f"{'median':>8}{'in 7 d':>12}{'in 24 h':>10}",
    ]
    for label, got in rules.items():
        median = "-" if got["median_h"] is None else f"{got['median_h']:.0f} h"
        within = "".join(_share(got[f"within_{limit}_h"]) for limit in (4, 24, 168))
        matched, in_alarm = got["matched"], f"{got['in_alarm']:.0%}" if got["windows"] else "-"
        found.append(
            f"{label:<20}{got['alarms_a_month']:>8.1f}{got['feature_alarms_a_month']:>10.1f}{in_alarm:>7}"
            f"{within}{median:>8}{_share(got['harmless']['within_168_h'], 12)}"
            f"{_share(None if matched is None else matched['within_24_h'], 10)}"
        )
    return [*found, ""]


def _unjudged(rules: dict[str, str]) -> list[str]:
    """The rules that are silent here whatever happens, by reason."""
    by_reason: dict[str, list[str]] = {}
    for rule, reason in rules.items():
        by_reason.setdefault(reason, []).append(rule)
    return [f"not judged here: {', '.join(names)}, because {reason}" for reason, names in by_reason.items()]


def _share(share: float | None, width: int = 9) -> str:
    return f"{'-' if share is None else f'{share:.2f}':>{width}}"
