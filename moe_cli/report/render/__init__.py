"""Tables, charts, captions and files of a report."""
