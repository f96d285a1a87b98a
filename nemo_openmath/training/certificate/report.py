"""What is said of a certificate and of a diagnosis, in lines for people."""

from __future__ import annotations

from nemo_openmath.core.errors import ExitCode, OpenMathError
from nemo_openmath.training.certificate.diagnose import Diagnosis, Explanation, never_shown
from nemo_openmath.training.certificate.files import RIGHT, Certificate

_SHOWN = 6  # names in a sentence


class NotCertified(OpenMathError):
    """Raised where losses are not, or not surely, those of a right trainer; the message names the faults."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILURE):
        super().__init__(message)
        self.exit_code = exit_code


EXIT_CODES = {"fault": ExitCode.FAULT, "unknown": ExitCode.UNKNOWN, "undecided": ExitCode.UNDECIDED}


def verdict(diagnosis: Diagnosis, certificate: Certificate) -> str:
    """Return a sentence of what a diagnosis found."""
    within = f"{_share(diagnosis.right_gap)} from the right loss, tolerance {_share(diagnosis.tolerance)}"
    names = diagnosis.explanations
    if diagnosis.status == "certified":
        return f"certified: {within}"
    if diagnosis.status == "unknown":
        return f"unknown: no known fault gives these losses ({within})"
    if diagnosis.status == "fault":
        what = "; or ".join(_what(name, certificate) for name in names)
        same = ", which are the same on these packs" if len(names) > 1 else ""
        return f"{' or '.join(map(_named, names))}{same}: {what} ({within})"
    shown = [_named(name) for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        shown.append(f"{len(names) - _SHOWN} more")
    return f"cannot tell apart {', '.join(shown[:-1])} and {shown[-1]} ({within})"


def advice(diagnosis: Diagnosis, certificate: Certificate) -> list[str]:
    """Return lines of what to look at, or what to give so that more can be told."""
    lines = []
    known = [name for name in diagnosis.names if name in certificate.faults] if diagnosis.status == "fault" else []
    for fault in (certificate.faults[name] for name in known):
        lines.append(f"look at: {fault['where']}")
        if fault["sources"]:
            lines.append(f"reported: {', '.join(fault['sources'])}")
    if diagnosis.status == "fault" and diagnosis.names[0] not in certificate.faults:
        lines.append(
            "look at: factors of CP, of DP or of the number of micro-batches, in the loss or in what is logged"
        )
    if diagnosis.status == "undecided":
        lines.append("give more rows (a column micro_batch or sample), fp32, or a certificate of more and other packs")
    if diagnosis.status == "certified":
        harmless = [name for name, fault in certificate.faults.items() if fault["harmless"]]
        lines += [f"no loss shows, and none needs to: {', '.join(harmless)}"] if harmless else []
        unseen = [f"{name} ({variant})" for name, variant in certificate.unexercised]
        lines += [f"not exercised by these packs: {'; '.join(unseen)}"] if unseen else []
    return lines


def table(certificate: Certificate) -> str:
    """Return the losses of the first step, right and with each fault, and what these packs cannot tell apart."""
    step = certificate.steps[0]
    rows = [(RIGHT, "", step.loss)] + [(fault.fault, fault.variant, fault.loss) for fault in step.predicted]
    widths = [max(map(len, column)) for column in ([row[0] for row in rows], [row[1] for row in rows])]
    lines = [
        f"{name:{widths[0]}}  {variant:{widths[1]}}  {loss:12.6f}  {loss / step.loss - 1:+.2e}"
        for name, variant, loss in rows
    ]
    hidden = never_shown(certificate)
    if hidden:
        lines.append(f"these packs cannot show: {', '.join(hidden)}")
    for precision, pairs in certificate.inseparable.items():
        near = [second if first == RIGHT else first for first, second in pairs if RIGHT in (first, second)]
        near = [name for name in near if not certificate.faults[name]["harmless"]]
        others = len([pair for pair in pairs if RIGHT not in pair])
        from_right = f"right from {', '.join(near)}; " if near else ""
        lines.append(f"in {precision} the batch's loss does not tell apart: {from_right}{others} pairs of faults")
    return "\n".join(lines)


def _named(explanation: Explanation) -> str:
    return explanation.name + (f" ({explanation.variant})" if explanation.variant else "")


def _what(explanation: Explanation, certificate: Certificate) -> str:
    fault = certificate.faults.get(explanation.name)
    return fault["what"] if fault else "the loss is multiplied or divided"


def _share(value: float) -> str:
    return f"{value:.1e}"
