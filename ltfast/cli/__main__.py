"""`python -m ltfast.cli` is `ltfast`."""

import sys

from ltfast.cli import main

sys.exit(main())
