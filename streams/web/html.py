"""The status page as HTML: whole without a script, every text escaped, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.parts import ALL_SLICE
from streams.evidence import in_words
from streams.status import event_columns
from streams.web import axes, standing
from streams.web.axes import text
from streams.web.charts import histogram
from streams.web.pictures import channel_chart, evidence_chart, quality_charts, score_rows
from streams.web.view import DAYS_MAX

REFRESH_MS = 5_000
DECISIONS = {True: "yes", False: "no"}

STYLE = """
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
header,main{max-width:920px;margin:0 auto;padding:0 20px}header{padding-top:18px}h1{font-size:20px;margin:0}
h2{font-size:16px;margin:26px 0 8px}h3{font-size:13px;margin:14px 0 2px;font-weight:600}p{margin:4px 0}
.soft,dt{color:var(--soft)}.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(120px,1fr));gap:8px}
.tiles div{background:var(--panel);border-radius:6px;padding:8px 10px}.tiles b{display:block;font-size:18px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:3px 8px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{color:var(--soft);font-weight:500}th:first-child,td:first-child,.left td,.left th{text-align:left}
dl{display:grid;grid-template-columns:100px 1fr;gap:4px 12px;margin:0}dd{margin:0;overflow-wrap:anywhere}
.runs td:first-child,.alerts td:nth-child(4),.log td:first-child{white-space:nowrap}
.page,.critical{color:var(--page)}.warn{color:var(--warn)}.note{border-left:3px solid var(--warn);padding-left:8px}
form{display:flex;flex-wrap:wrap;gap:8px;align-items:end}label{display:flex;flex-direction:column;font-size:12px}
select,input,button{font:inherit;color:inherit;background:var(--panel);border:1px solid var(--line);border-radius:4px;
padding:3px 6px}svg{width:100%;height:auto;display:block}nav a{margin-right:12px}a{color:var(--serving)}
.key{font-size:12px;color:var(--soft)}.key i{display:inline-block;width:11px;height:11px;margin:0 4px -1px 10px}
.key i:first-child{margin-left:0}.k-reference{background:var(--reference)}.k-serving{background:var(--serving)}
.k-young{background:var(--young);opacity:.45}.k-page{background:var(--page)}.k-warn{background:var(--warn)}
.k-champion{background:var(--champion)}.k-band{background:var(--serving);opacity:.25}
"""

SCRIPT = """
document.addEventListener("change",e=>{const f=e.target.closest("form");if(f)f.requestSubmit()});
setInterval(async()=>{const a=document.activeElement;if(document.hidden||(a&&a.closest("form")))return;
try{const r=await fetch(location.href);if(!r.ok)return;
const m=new DOMParser().parseFromString(await r.text(),"text/html").querySelector("main");
const open=[...document.querySelectorAll("details")].map(d=>d.open);
m.querySelectorAll("details").forEach((d,i)=>{d.open=!!open[i]});
document.querySelector("main").replaceWith(m)}catch(e){}},WAIT);
"""


def page(view: dict[str, Any], nonce: str) -> str:
    """The whole document.

    Parameters
    ----------
    view
        From :meth:`streams.web.view.View.gather`.
    nonce
        Under which the answer's security policy allows this style sheet and script, and no other.
    """
    status = view["status"]
    body = [_notes(view["notes"]), _tiles(status), _events(status), _plane(status)]
    if view["model"] is None:
        body.append("<p>No model is configured or known yet: <code>flywheel init TABLE</code> begins with one.</p>")
    else:
        body += [_model(view), standing.section(view["standing"], view["weak"]), _feature(view), _quality(view)]
    script = SCRIPT.replace("WAIT", str(REFRESH_MS)).strip()
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Flywheel</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f'<style nonce="{nonce}">{axes.STYLE}{STYLE.strip()}</style>'
        "<header><h1>Flywheel</h1></header>"
        f"<main>{''.join(body)}</main>"
        f'<script nonce="{nonce}">{script}</script></html>\n'
    )


def failure(message: str, nonce: str) -> str:
    """A page that says why there is nothing to see."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Flywheel</title>'
        f'<style nonce="{nonce}">{axes.STYLE}{STYLE.strip()}</style><header><h1>Flywheel</h1></header>'
        f'<main><p class="note">{text(message)}</p></main></html>\n'
    )


def _notes(notes: Sequence[str]) -> str:
    return "".join(f'<p class="note">{text(note)}</p>' for note in notes)


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _share(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{share * 100:.{digits}f} %"


def _figure(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _when(time: str | None) -> str:
    """A time as the page shows it: to the minute, UTC."""
    return "-" if time is None else time[:16].replace("T", "\u00a0")


def _row(cells: Sequence[Any], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{text(cell)}</{tag}>' for cell in cells)}</tr>"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> str:
    body = "".join(_row(row) for row in rows)
    return f'<table class="{kind}">{_row(head, "th")}{body}</table>'


def _tiles(status: dict[str, Any]) -> str:
    broker, shares = status["broker"], status["coverage"] or {}
    alerts = [alert for model in status["models"].values() for alert in model["alerts"]]
    tiles = {
        "events in": _number(sum(each["in"] for each in status["events"].values())),
        "monitored": _number(status["monitored"]),
        "of predictions" if status["lag"] is not None else "of those read": _share(shares.get("predictions"), 2),
        "lag": _number(status["lag"]),
        "dead letters": _number(status["dead_letters"]["total"]),
        "open alerts": _number(len(alerts)),
    }
    where = f"{broker['address']} ({broker['cluster']})" if broker["is_reachable"] else f"away: {broker['error']}"
    reached = f"event time {_when(status['watermark'])}, judged until {_when(status['judged_until'])}"
    head = f"<p class='soft'>{_when(status['time'])} · {reached} · all times are UTC</p>"
    head += f"<p class='soft'>broker {text(where)}</p>"
    found = "".join(
        f"<div><span class='soft'>{text(name)}</span><b>{text(value)}</b></div>" for name, value in tiles.items()
    )
    return f"{head}<div class='tiles'>{found}</div>"


def _events(status: dict[str, Any]) -> str:
    names = event_columns(status["events"])
    rows = [
        [noun, *(_number(None if name == "lag" and status["lag"] is None else each[name]) for name in names)]
        for noun, each in status["events"].items()
    ]
    letters = ", ".join(f"{count} {reason}" for reason, count in status["dead_letters"]["by_reason"].items())
    told = f"<p class='soft'>dead letters: {text(letters)}</p>" if letters else ""
    return f"<h2>Events</h2>{_table(['topic', *names], rows)}{told}"


def _plane(status: dict[str, Any]) -> str:
    return "".join(
        f'<p class="{text(alert["severity"])}">{_when(alert["since"])} {text(alert["message"])}</p>'
        for alert in status["plane_alerts"]
    )


def _model(view: dict[str, Any]) -> str:
    status, name = view["status"], view["model"]
    model = status["models"][name]
    others = [each for each in status["models"] if each != name]
    links = "".join(f'<a href="?model={text(_quoted(each))}">{text(each)}</a>' for each in others)
    champion, queue, labels = model["champion"], model["queue"], model["labels"]
    if champion:
        served = f"{champion['version']} since {_when(champion['since'])}, {champion['action']}: {champion['reason']}"
    else:
        served = "none is registered; seen: " + (", ".join(v["version"] for v in model["versions"]) or "nothing")
    words = ", ".join(f"{count} {word}" for word, count in (labels["verdicts"] | labels["answers"]).items())
    facts = {
        "champion": served,
        "monitored": f"{_number(model['monitored'])} predictions, {_number(model['truths'])} truths",
        "coverage": _coverage(model["coverage"]),
        "queue": ", ".join(f"{queue[state]} {state}" for state in ("open", "leased", "flagged", "done", "duplicate")),
        "labels": f"{labels['labels']}, {labels['labels_today']} today{': ' if words else ''}{words}",
        "proposals": _proposals(model["proposals"]),
        **_retrain(model["retrain"]),
    }
    listed = "".join(f"<dt>{text(title)}</dt><dd>{text(value)}</dd>" for title, value in facts.items() if value)
    reasons = "".join(f"<li>{text(reason)}</li>" for reason in model["coverage"]["why_not"])
    gaps = f"<details><summary>What is not monitored, and why</summary><ul>{reasons}</ul></details>" if reasons else ""
    nav = f"<nav class='soft'>other models: {links}</nav>" if links else ""
    return (
        f"<h2>{text(name)}</h2>{nav}<dl>{listed}</dl>{gaps}{_alerts(model['alerts'])}{_runs(model['retrain']['runs'])}"
    )


def _coverage(coverage: dict[str, Any]) -> str:
    if "checks" not in coverage:
        return "nothing"
    return f"{coverage['checks_monitored']} of {coverage['checks']} checks of {coverage['features']} features"


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


def _proposals(proposals: dict[str, Any]) -> str:
    newest = "; ".join(f"{p['kind']} {p['cause']} ({p['state']})" for p in proposals["newest"][:3])
    return f"{proposals['open']} open; newest: {newest}" if newest else ""


def _retrain(retrain: dict[str, Any]) -> dict[str, str]:
    last = retrain["last"]
    if last is None:
        return {"retrain": "not decided yet"}
    other = retrain["last_no"] if last["is_yes"] else retrain["last_yes"]
    told = {"retrain": f"{DECISIONS[last['is_yes']]} at {_when(last['last'])}: {last['reason']}"}
    if other is not None:
        told["before"] = f"{DECISIONS[other['is_yes']]} at {_when(other['last'])}: {other['reason']}"
    return told


def _about(alert: dict[str, Any]) -> str:
    """What an alert is about; bias has no other subject than itself."""
    channel, subject = alert["channel"], alert["subject"]
    return str(subject) if channel == subject else f"{channel} {subject}"


def _alerts(alerts: Sequence[dict[str, Any]]) -> str:
    if not alerts:
        return "<h3>Open alerts</h3><p class='soft'>none</p>"
    found = "".join(
        f'<tr><td class="{text(a["severity"])}">{text(a["severity"])}</td>'
        f"<td>{text(_about(a))}</td><td>{text(a['slice'])}</td><td>{text(_when(a['since']))}</td>"
        f"<td>{text(a['message'])}{_shown(a)}</td></tr>"
        for a in alerts
    )
    return f'<h3>Open alerts</h3><table class="left alerts">{found}</table>'


def _shown(alert: dict[str, Any]) -> str:
    """What shows it, since when, and where that is in the log."""
    said = "".join(f"<dt>{text(title)}</dt><dd>{text(what)}</dd>" for title, what in in_words(alert["detail"]))
    name = f"<code>flywheel alerts show {text(alert['incident_id'])}</code>"
    return f"<details><summary>evidence</summary><dl>{said}</dl>{name}</details>" if said else ""


def _runs(runs: Sequence[dict[str, Any]]) -> str:
    if not runs:
        return ""
    rows = [
        [
            _when(run["as_of"]), run["trigger"], run["state"], run["version"] or "-",
            "; ".join(f"{c['recipe']} {c['verdict']}" for c in run["candidates"]) or run["outcome"],
        ]
        for run in runs
    ]  # fmt: skip
    return (
        f"<h3>Retraining runs</h3>{_table(['as of', 'trigger', 'state', 'version', 'challengers'], rows, 'left runs')}"
    )


# -- the histogram ---------------------------------------------------------------------------------------------------


def _options(names: Sequence[str], chosen: str) -> str:
    return "".join(
        f'<option value="{text(name)}"{" selected" if name == chosen else ""}>{text(name)}</option>' for name in names
    )


def _form(view: dict[str, Any]) -> str:
    feature = view["feature"]
    fields = [f'<input type="hidden" name="model" value="{text(view["model"])}">']
    if feature is not None:
        fields.append(
            f'<label>feature<select name="feature">{_options(feature["names"], feature["name"])}</select></label>'
        )
    fields.append(f'<label>slice<select name="slice">{_options(view["slices"], view["slice"])}</select></label>')
    if feature is not None:
        for name in ("from", "until"):
            value = text(feature[name].removesuffix("Z")[:16])
            fields.append(f'<label>{name} (UTC)<input type="datetime-local" name="{name}" value="{value}"></label>')
    days = f'<input type="number" name="days" min="1" max="{DAYS_MAX}" value="{view["days_asked"]}">'
    fields.append(f"<label>days of quality{days}</label>")
    return f'<form method="get" action="/">{"".join(fields)}<button>Show</button></form>'


def _feature(view: dict[str, Any]) -> str:
    feature = view["feature"]
    if feature is None:
        return f"<h2>Features</h2>{_form(view)}<p class='soft'>There is no reference profile to compare with.</p>"
    told = f"{_number(feature['rows'])} served rows, {_number(feature['reference_rows'])} of training"
    trained = "training" if view["slice"] == ALL_SLICE else "training (of all rows)"
    key = f'<p class="key"><i class="k-reference"></i>{trained}<i class="k-serving"></i>served</p>'
    chart = histogram(feature["cells"], f"{feature['name']}: served against training")
    head = f"<h2>{text(feature['name'])}, {text(view['slice'])}</h2>{_form(view)}"
    return f"{head}<p class='soft'>{text(told)}</p>{key}{chart}{_scores(feature)}{_evidence(view)}"


def _scores(feature: dict[str, Any]) -> str:
    """The usual scores, and what they are with no drift at all: the constants mislead."""
    if not feature["rows"]:
        return ""
    rows = score_rows(feature["scores"])
    table = _table(["score", "value", "by chance alone", "less chance", "what is usual"], rows)
    return f"<details><summary>Scores</summary>{table}</details>"


def _evidence(view: dict[str, Any]) -> str:
    chart = evidence_chart(view)
    if chart is None:
        return ""
    key = (
        '<p class="key"><i class="k-serving"></i>evidence of the days shown, the e-detector on hours'
        '<i class="k-champion"></i>change estimated<i class="k-page"></i>page<i class="k-warn"></i>warning</p>'
    )
    channel = channel_chart(view)
    below = "" if channel is None else f"<h3>{text(channel.title)}</h3>{channel}"
    return f"<h3>{text(chart.title)}</h3>{key}{chart}{below}"


# -- quality over time -----------------------------------------------------------------------------------------------


def _quality(view: dict[str, Any]) -> str:
    if not view["days"]:
        return "<h2>Quality</h2><p class='soft'>No prediction was monitored yet.</p>"
    charts = "".join(f"<h3>{text(chart.title)}</h3>{chart}" for chart in quality_charts(view))
    key = (
        '<p class="key"><i class="k-serving"></i>per day<i class="k-band"></i>valid at every look'
        '<i class="k-young"></i>truths still missing<i class="k-page"></i>page<i class="k-warn"></i>warning'
        '<i class="k-champion"></i>new champion</p>'
    )
    return f"<h2>Quality by day of the prediction, {text(view['slice'])}</h2>{key}{charts}{_numbers(view)}"


def _numbers(view: dict[str, Any]) -> str:
    rows = [
        [
            day["day"], _number(day["n"]), _share(day["matured_share"]),
            _figure(day["bias"], "+.3f"),
            _figure(day["mae"] if day["log_loss"] is None else day["log_loss"]),
            _figure(day["auc"]), _figure(day["accuracy"]), ", ".join(day["versions"]),
        ]
        for day in reversed(view["days"])
    ]  # fmt: skip
    head = ["day", "n", "matured", "bias", "loss", "AUC", "accuracy", "versions"]
    alerts = [
        [mark["time"], mark["severity"] or mark["kind"], mark["title"], mark["text"]]
        for mark in reversed(view["marks"])
    ]
    listed = (
        f"<details><summary>Alerts and champions</summary>{_table(['time', '', '', ''], alerts, 'left log')}</details>"
    )
    return f"<details><summary>The figures</summary>{_table(head, rows)}</details>{listed if alerts else ''}"
