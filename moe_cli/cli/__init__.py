"""The command line: parse, call, print. Heavy imports stand inside the commands, so that `moe --help` is quick."""
