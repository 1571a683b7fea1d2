"""The command line of `scripts/bench`."""

from __future__ import annotations

import sys

COMMANDS = ("speed", "pace")


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names; `speed` by default."""
    command, rest = "speed", arguments
    if arguments and arguments[0] in COMMANDS:
        command, *rest = arguments
    if command == "pace" and rest == ["--simulate"]:
        from . import pace_table

        return pace_table.main()
    if command == "pace":
        from . import pace

        return pace.main()
    from . import speed

    return speed.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
