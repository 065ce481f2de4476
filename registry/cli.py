"""The command `quantmill`."""

import argparse
import sys
from pathlib import Path

from pipelines.stage import StageError, quiet


def main() -> None:
    """Run one subcommand. Ends with 1 and one line on standard error when it cannot be done."""
    quiet()
    parser = argparse.ArgumentParser(prog="quantmill", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("sync", help="log into MLflow what it lacks of the last build")
    command.add_argument("build", nargs="?", type=Path, default=Path("build"), help="the line's outputs (build)")
    command.set_defaults(run=_sync)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except StageError as error:
        print(f"quantmill {arguments.command}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _sync(arguments: argparse.Namespace) -> None:
    from registry import register, variants

    print(register.sync(variants.read(arguments.build)))


if __name__ == "__main__":
    main()
