"""python -m moe_cli: the same as `moe`."""

from moe_cli.cli.app import main

if __name__ == "__main__":
    main()
