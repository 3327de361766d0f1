# SPDX-License-Identifier: MIT
"""``python -m occnets.training`` is ``occnets train``."""

import sys

from occnets.training.command import cli_main

if __name__ == "__main__":
    sys.exit(cli_main())
