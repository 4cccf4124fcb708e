"""A pivot table as a section of the page: a heat map, and the same cells as a table."""

from moe_cli.report.columns import PLUS_MINUS
from moe_cli.report.html.section import HeatCell, HeatMap, Section
from moe_cli.report.pivot import Pivot
from moe_cli.report.render.pivot import caption, cell_text, pivot_notes, row_labels

# The colours of a heat map of the page, from the middle to one end.
SHADES = (4, 3, 2, 1, 0)


def pivot_section(pivot: Pivot) -> Section:
    """Returns the heat map for the page. The best value has the strongest colour; else the highest one has."""
    goodness = {place: (pivot.direction or 1) * cell.value for place, cell in pivot.cells.items()}
    low, high = min(goodness.values()), max(goodness.values())

    def heat(place: tuple[int, int]) -> HeatCell | None:
        cell = pivot.cells.get(place)
        if cell is None:
            return None
        share = (goodness[place] - low) / (high - low) if high > low else 0.0
        row, column = pivot.rows[place[0]], pivot.columns[place[1]]
        runs = ", ".join(run.run for run in cell.row.runs[:3]) + (" ..." if len(cell.row.runs) > 3 else "")
        note = f"{pivot.row_heading}={row.label} {column.heading}\n{cell_text(cell, True)} {pivot.heading}\n{runs}"
        return HeatCell(cell_text(cell, False), note, SHADES[min(len(SHADES) - 1, int(share * len(SHADES)))])

    size = (len(pivot.rows), len(pivot.columns))
    cells = tuple(tuple(heat((row, column)) for column in range(size[1])) for row in range(size[0]))
    chart = HeatMap(tuple(row_labels(pivot)), tuple(value.heading for value in pivot.columns), cells)
    strongest = "the best" if pivot.direction else "the highest"
    sentences = [f"{note[0].upper()}{note[1:]}." for note in pivot_notes(pivot)]
    notes = [f"Strongest colour: {strongest} {pivot.heading}.", *sentences]
    heads = (pivot.row_heading, *(value.heading for value in pivot.columns))
    rows = tuple(
        (value.label, *(cell_text(cell, True).replace(PLUS_MINUS, " ± ") for cell in pivot.line(row)))
        for row, value in enumerate(pivot.rows)
    )
    return Section(
        "pivot", caption(pivot), headings=heads, rows=rows, heat_map=chart, note=" ".join(notes), before_table=True
    )
