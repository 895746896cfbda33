"""``flywheel backtest``: what a policy would have done, before it is turned on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from streams.cli import Session, echo_json, json_option, moment, pass_session

if TYPE_CHECKING:
    from streams.lab.backtest import Backtest
    from streams.logic.policy import MonitorPolicy

PLANTED = 24
PAGES_SHOWN = 20


@click.command()
@click.option("--model", help="Which; may be left out if there is only one.")
@click.option("--version", help="Whose answers; default: the champion's.")
@click.option("--since", "since_us", callback=moment, metavar="TIME", help="Watch from then on, and learn from before.")
@click.option("--until", "until_us", callback=moment, metavar="TIME", help="Only rows asked before then.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Of [models.NAME.monitor]; may be repeated.")
@click.option(
    "--plant", "count", type=click.IntRange(0, 10_000), default=PLANTED, show_default=True,
    help="Changes of random kinds, features, slices and moments.",
)  # fmt: skip
@click.option("--seed", default=1, show_default=True, help="Of the planted changes.")
@json_option
@pass_session
def backtest(
    session: Session,
    model: str | None,
    version: str | None,
    since_us: int | None,
    until_us: int | None,
    changes: tuple[str, ...],
    count: int,
    seed: int,
    as_json: bool,
) -> None:
    """Run the monitor over what is recorded of a model: how often it would have woken somebody, and how soon it would
    have told of changes that are planted in the same rows.

    With --set the policy of flywheel.toml is run beside the changed one, over the same rows and changes.
    """
    from streams.lab.backtest import NoPastError, recorded
    from streams.lab.backtest import backtest as run
    from streams.lab.planted import draw
    from streams.runtime import Runtime

    config = session.config
    name = model or _only(list(config.models))
    policy = config.model(name).monitor
    policies = {"flywheel.toml": policy}
    if changes:
        policies["changed"] = _changed(policy, changes)
    runtime = Runtime.open(config, "", "", is_embedded=config.is_embedded)
    try:
        found_version = runtime.models.get(name, version) if version else runtime.models.resolve(name)
        if found_version is None:
            raise NoPastError(f"'{name}' has no champion, so nothing says what it would have answered.")
        recording = recorded(runtime, found_version, since_us=since_us, until_us=until_us)
        plants = draw(recording, count, policy.impact, seed)
        found: dict[str, Backtest] = {}
        total = (1 + len(plants)) * len(policies)
        with click.progressbar(length=total, label="backtest", file=click.get_text_stream("stderr")) as bar:
            for label, tried in policies.items():
                found[label] = run(recording, tried, plants, bar.update)
    finally:
        runtime.engine.dispose()
    if as_json:
        echo_json({"model": name, "seed": seed, "policies": {label: each.told() for label, each in found.items()}})
        return
    for label, each in found.items():
        click.echo("\n".join(_lines(label, each.told())))


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise click.UsageError(f"Which model? Known: {', '.join(sorted(names)) or 'none'}. Say it with --model NAME.")
    return names[0]


def _changed(policy: MonitorPolicy, changes: tuple[str, ...]) -> MonitorPolicy:
    """The policy with some keys set as in TOML.

    Raises
    ------
    click.BadParameter
        If a key or value is not one of the policy's.
    """
    import tomllib

    from pydantic import ValidationError

    from streams.logic.policy import MonitorPolicy

    values = policy.model_dump()
    for text in changes:
        key, _, value = text.partition("=")
        try:
            values[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            raise click.BadParameter(f"'{text}' is not KEY=VALUE with a value as in TOML.") from None
    try:
        return MonitorPolicy(**values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise click.BadParameter(f"'{'.'.join(map(str, problem['loc']))}': {problem['msg']}.") from None


def _lines(label: str, told: dict[str, Any]) -> list[str]:
    from labeling.render import plain

    low, high = told["pages_a_month_interval"]
    lines = [
        f"{label}: {len(told['pages'])} pages in {told['months']:.1f} months, {told['pages_a_month']:.2f} a month"
        f" (95 % interval {low:.2f} to {high:.2f})"
    ]
    lines += [f"  {page['time']}  {plain(page['message'])}" for page in told["pages"][:PAGES_SHOWN]]
    if len(told["pages"]) > PAGES_SHOWN:
        lines.append(f"  and {len(told['pages']) - PAGES_SHOWN} more; see --json")
    if not told["planted"]:
        return [*lines, ""]
    lines += ["", f"  {'planted changes':<28}{'number':>8}{'in 4 h':>9}{'in 24 h':>9}{'in 7 d':>9}{'median':>10}"]
    for name, text in (("hurting", "that move the answers"), ("harmless", "that hardly do")):
        got = told[name]
        if got["planted"]:
            median = "-" if got["median_h"] is None else f"{got['median_h']:.0f} h"
            within = "".join(f"{got[f'within_{limit}_h']:>9.2f}" for limit in (4, 24, 168))
            lines.append(f"  {text:<28}{got['planted']:>8}{within}{median:>10}")
    named = told["hurting"]["named_right"]
    if named is not None:
        lines.append(f"  the right feature was named first in {named:.0%}")
    return [*lines, ""]
