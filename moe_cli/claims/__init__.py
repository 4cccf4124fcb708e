"""Published claims about experts: read from conf/claim, tried by a sweep, and judged by a predicate."""
