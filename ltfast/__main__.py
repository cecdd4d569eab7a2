"""`python -m ltfast` runs the `ltfast` command."""

import sys


def main() -> int:
    """Run `ltfast.cli.main`. The import is inside the `try`, so that an interrupt during it is caught too."""
    try:
        from ltfast.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("ltfast: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
