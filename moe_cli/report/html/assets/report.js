// The page of a report: its sections.
function static_sections(before) {
  return page.sections.filter(each => each.before_table === before).map(static_section);
}

const sections = [...static_sections(true), table_section(), curves_section(), scatter_section(), experts_section(),
  ...static_sections(false)];
open_page(sections.filter(Boolean), [...page.below, ...page.notes, page.generated], notify);
