"""The command line: parse, call, print. Heavy imports are inside the commands, so that `moe --help` is fast."""
