"""The page of a rehearsal: the table, the scores against the time, and the loss as bars. One file, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from nemo_openmath.competition.lab.contest import Rehearsal
from nemo_openmath.evaluation.reports.page import text_of
from nemo_openmath.evaluation.reports.svg import Axis, Line, bar, line_chart

_CAUSES = ("coverage", "selection", "time")


@dataclass(frozen=True)
class Curve:
    """The scores of a policy at several times of a problem."""

    name: str
    points: tuple[tuple[float, Rehearsal], ...]


def page_of(
    title: str, lines: Sequence[str], curves: Sequence[Curve], rehearsals: Sequence[tuple[str, Rehearsal]]
) -> str:
    """Return the page. ``lines`` is what the command prints."""
    body = [Markup("<pre>{}</pre>").format("\n".join(lines))]
    if curves:
        body += [Markup("<h2>Score and time</h2>"), _chart(curves)]
        body += [_table(curve) for curve in curves]
    body += [Markup("<h2>Where the points went</h2>"), *(_loss(name, r) for name, r in rehearsals)]
    return Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>{}</title><style>{}</style></head>'
        '<body><header><p class="brand">Contest laboratory</p><h1>{}</h1></header><main>{}</main></body></html>\n'
    ).format(title, Markup(text_of("report.css")), title, Markup("\n").join(body))


def _chart(curves: Sequence[Curve]) -> Markup:
    lines = []
    for colour, curve in enumerate(curves):
        ends = [r.interval for _, r in curve.points]
        lines.append(
            Line(
                [seconds for seconds, _ in curve.points],
                [r.score for _, r in curve.points],
                curve.name,
                [low for low, _ in ends] if len(curves) == 1 else None,
                [high for _, high in ends] if len(curves) == 1 else None,
                colour % 5,
                notes=[f"{seconds:g} s: {r.score:.4f}" for seconds, r in curve.points],
            )
        )
    times = [seconds for seconds, _ in curves[0].points]
    return line_chart(
        lines,
        x=Axis(min(times), max(times), "seconds of a problem", log=True),
        y=Axis(0.0, 1.0, "score"),
        title="Score against the time of a problem",
        description="; ".join(
            f"{c.name} from {c.points[0][1].score:.3f} to {c.points[-1][1].score:.3f}" for c in curves
        ),
        width=640,
        height=320,
    )


def _table(curve: Curve) -> Markup:
    rows = Markup("").join(
        Markup("<tr><td>{:g}</td><td>{:.4f}</td><td>{:.4f} to {:.4f}</td><td>{:.4f}</td><td>{:.1f}</td></tr>").format(
            seconds, r.score, *r.interval, _shares(r)["time"], r.seconds
        )
        for seconds, r in curve.points
    )
    return Markup(
        "<table><caption>{}</caption><thead><tr><th>seconds of a problem</th><th>score</th><th>95% interval</th>"
        "<th>lost to time</th><th>seconds used</th></tr></thead><tbody>{}</tbody></table>"
    ).format(curve.name, rows)


def _loss(name: str, rehearsal: Rehearsal) -> Markup:
    shares = {"right": rehearsal.score} | _shares(rehearsal)
    rows = Markup("").join(
        Markup('<tr><td>{}</td><td class="number">{:.4f}</td><td>{}</td></tr>').format(what, share, bar(share, colour))
        for colour, (what, share) in enumerate(shares.items())
    )
    return Markup("<table><caption>{}</caption><tbody>{}</tbody></table>").format(name, rows)


def _shares(rehearsal: Rehearsal) -> dict[str, float]:
    tallies = rehearsal.tallies
    return {cause: sum(getattr(t.loss, cause) / t.runs for t in tallies) / len(tallies) for cause in _CAUSES}
