"""Sections of a report's page with a decision: the answer, and the race of the candidates against the budget spent."""

from collections.abc import Collection, Sequence
from pathlib import Path

from moe_cli.decisions.certificate import Certificate, Finished, make_certificate
from moe_cli.decisions.decision_file import read_decision
from moe_cli.decisions.feed import Results, replay
from moe_cli.decisions.plan import DENSE_NAME
from moe_cli.decisions.run_decision import make_decision_limit
from moe_cli.decisions.terms import CONFIRMATION, LEARNING_RATE, STAGES, Decision
from moe_cli.decisions.text import answer_sentences, certificate_parts, tables
from moe_cli.errors import MoeError
from moe_cli.formatting import sanitise
from moe_cli.plugins import not_imported
from moe_cli.report.html.section import POINT, RING, Chart, Line, Section

# The colours of a page: of the candidates that went farthest, of the others together, and of the dense model.
OTHERS, DENSE = 8, 9
RACE_NOTE = (
    "Each point is the mean difference of a candidate to the dense model over the runs of a stage so far, paired by "
    "seed. A line ends where a candidate was dropped. Rings: fresh seeds."
)


def load_certificate(folder: Path) -> Certificate | None:
    """Returns the certificate of the decision in a folder; None if it holds none, or one that has not ended.

    Raises:
        ConfigError: the record of the decision is damaged.
    """
    record = read_decision(folder)
    if record is None:
        return None
    results: Results = {}
    limit = make_decision_limit(record.limits, record.parallel)
    step = replay(record.plan, record.candidates, limit, folder.parent, results=results)
    if step.decision is None:
        return None
    return make_certificate(record.plan, step.decision, results, record.limits, folder.parent)


def find_certificate(folders: Collection[Path]) -> Certificate | None:
    """Returns the certificate if this is the folder of one decision; None if it is unreadable or has not ended."""
    if len(folders) != 1:
        return None
    try:
        with not_imported():
            return load_certificate(*folders)
    except MoeError:  # the runs can be reported all the same
        return None


def decision_sections(folders: Collection[Path]) -> list[Section]:
    """Returns the sections of the only decision in these folders of sweeps; empty if it is unreadable or not ended."""
    certificate = find_certificate(folders)
    return certificate_sections(certificate) if certificate else []


def certificate_sections(found: Certificate) -> list[Section]:
    """Returns the answer, the race, and a section for each table of the certificate."""
    sentences = [line for _, lines in certificate_parts(found) for line in lines]
    sections = [
        Section("answer", f"Decision: {sanitise(found.name)}", tuple(answer_sentences(found)), before_table=True),
        Section("race", "Race", chart=race(found), note=RACE_NOTE, before_table=True),
        Section("certificate", "Certificate", tuple(sentences)),
    ]
    for number, (title, headings, rows) in enumerate(tables(found)):
        sections.append(
            Section(
                f"decision-{number}",
                title.split(":")[0].split(",")[0].capitalize(),
                headings=tuple(headings),
                rows=tuple(map(tuple, rows)),
            )
        )
    return sections


def race(found: Certificate) -> Chart:
    """Returns the chart of each candidate's running difference to the dense model, in percent, over the runs so far."""
    names = [name for name in dict.fromkeys(entry.candidate for entry in found.history) if name != DENSE_NAME]
    lines = []
    named = len(names) if len(names) <= OTHERS + 1 else OTHERS
    for number, name in enumerate(_by_survival(names, found.decision)):
        style = min(number, OTHERS)
        points = running_differences(found.history, name)
        before = tuple((runs, value) for runs, value, is_fresh in points if not is_fresh)
        fresh = tuple((runs, value) for runs, value, is_fresh in points if is_fresh)
        label = sanitise(name) if number < named else "others"
        lines.append(Line(label, (*before, *fresh[:1]), style, connect=True, mark=POINT))
        if fresh:
            lines.append(Line(label, fresh, style, connect=True, mark=RING))
    lines.append(Line(DENSE_NAME, ((1.0, 0.0), (float(max(2, len(found.history))), 0.0)), DENSE, connect=True, mark=""))
    return Chart("runs so far", "difference to dense, %", tuple(line for line in lines if line.points))


def _by_survival(names: Sequence[str], decision: Decision) -> list[str]:
    """Returns the candidates that went farthest first, so that they have colours of their own."""
    dropped = [entry.name for entry in decision.dropped]
    order = {name: number for number, name in enumerate(dropped)}
    return sorted(names, key=lambda name: -order.get(name, len(dropped)))


def running_differences(history: Sequence[Finished], name: str) -> list[tuple[float, float, bool]]:
    """Returns (runs so far, mean relative difference to dense in percent, whether on fresh seeds) after each pair.

    A pair is a run of the candidate and one of the dense model with one seed and share of the budget, of one stage.
    Means begin again at each stage. Trials of a learning rate are paired with those of the same multiplier.
    """
    found: list[tuple[float, float, bool]] = []
    for stage in STAGES:
        losses: dict[tuple[str, int, float, float], float] = {}
        differences: dict[tuple[int, float, float], float] = {}
        for entry in (entry for entry in history if entry.stage == stage and entry.loss is not None):
            rate = entry.lr_multiplier if stage == LEARNING_RATE else 0.0
            losses[entry.candidate, entry.seed, entry.fraction, rate] = entry.loss or 0.0
            place = (entry.seed, entry.fraction, rate)
            own, base = losses.get((name, *place)), losses.get((DENSE_NAME, *place))
            if own is not None and base and place not in differences:
                differences[place] = 100 * (own - base) / base
                mean = sum(differences.values()) / len(differences)
                found.append((float(entry.runs), mean, stage == CONFIRMATION))
    return found
