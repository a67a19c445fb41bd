"""`python -m genie_jax` is `genie`."""

import sys

from genie_jax.cli import main

sys.exit(main.main())
