// The page of a report: its sections.
const told_sections = first => page.sections.filter(each => each.first === first).map(told_section);
const sections = [...told_sections(true), table_section(), curves_section(), scatter_section(), experts_section(), ...told_sections(false)];
open_page(sections.filter(Boolean), [...page.below, ...page.notes, page.made], changed);
