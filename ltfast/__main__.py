"""`python -m ltfast` is `ltfast`."""

import sys


def main() -> int:
    """`ltfast.cli.main`, imported where an interrupt is caught already."""
    try:
        from ltfast.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("ltfast: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
