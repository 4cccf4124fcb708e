"""A study of routing as one page for a browser."""

from moe_cli.formatting import sanitise
from moe_cli.moe.routing_study import RoutingStudy
from moe_cli.report.html.page import PageTemplate, render
from moe_cli.report.html.section import Chart, Line, Section
from moe_cli.report.render.routing_study import (
    load_rows,
    routing_study_lines,
    study_sentences,
    study_tables,
    study_title,
)

GENERATOR = "moe runs experts"
SCRIPTS = ("svg.js", "interaction.js", "static_section.js", "page_shell.js", "routing_study.js")
# The text for browsers without scripts.
PLAIN_WIDTH = 120
# Experts whose loads have a column.
MAX_COLUMNS = 64


def routing_study_page(study: RoutingStudy, generated: str, program: str) -> str:
    """Returns the page. `generated` is the line on the program and the time."""
    plain = "\n".join(line.plain for line in routing_study_lines(study, None, PLAIN_WIDTH))
    title, *above = study_title(study), *study_sentences(study)
    content = {
        "title": sanitise(f"Routing of {study.run}"),
        "above": [sanitise(line) for line in (title, *above)],
        "generated": generated,
        "sections": [section.content() for section in _sections(study)],
    }
    template = PageTemplate(
        f"Routing of {study.run}", plain, f"{GENERATOR}, {program}", SCRIPTS, first=("specialisation", "tables")
    )
    return render(content, template)


def _sections(study: RoutingStudy) -> list[Section]:
    charts = {"specialisation": _specialisation_chart(study), "caches": _cache_chart(study)}
    sections = [
        Section(
            table.id,
            table.title[0].upper() + table.title[1:],
            headings=table.headings,
            rows=table.rows,
            chart=charts.get(table.id),
            note=table.note,
        )
        for table in study_tables(study)
    ]
    experts = len(study.layers[0].load)
    names = [f"E{number + 1}" for number in range(min(experts, MAX_COLUMNS))]
    rows = tuple(row[: 4 + len(names)] for row in load_rows(study))
    left = f" The first {MAX_COLUMNS} of {experts} experts: --json has all." if len(names) < experts else ""
    headings = ("layer", "domain", "tokens", "nats", *names)
    loads = Section("loads", "Load by domain", headings=headings, rows=rows, note=f"1 is a fair share.{left}")
    return [*sections, loads]


def _specialisation_chart(study: RoutingStudy) -> Chart | None:
    found = [(layer.layer + 1, layer.specialisation) for layer in study.layers if layer.specialisation]
    if not found:
        return None
    curves = [
        ("measured", [(number, one.measured) for number, one in found]),
        ("random routers, mean", [(number, one.random.mean) for number, one in found if one.random]),
        ("shuffled domains, mean", [(number, one.shuffled.mean) for number, one in found]),
    ]
    lines = [Line(name, tuple(points), style, connect=True) for style, (name, points) in enumerate(curves) if points]
    return Chart("layer", "specialisation by domain", tuple(lines))


def _cache_chart(study: RoutingStudy) -> Chart:
    return Chart(
        "experts in the cache",
        "share of hits",
        tuple(
            Line(
                f"L{layer.layer + 1}",
                tuple((size, rate) for size, rate in enumerate(layer.locality.hit_rates, 1)),
                layer.layer,
                connect=True,
            )
            for layer in study.layers
        ),
    )
