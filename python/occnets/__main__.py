# SPDX-License-Identifier: MIT
"""``python -m occnets`` is the command ``occnets``."""

import sys

from occnets.cli import main

sys.exit(main())
