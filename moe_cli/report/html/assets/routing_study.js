// The page of a study of routing: its sections.
open_page(page.sections.map(static_section), [page.generated], notify);
