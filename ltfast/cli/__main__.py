"""`python -m ltfast.cli` runs the `ltfast` command."""

import sys

from ltfast.cli import main

sys.exit(main())
