# SPDX-License-Identifier: MIT
"""The subcommands of ``occnets``, a module each: ``add_parser`` and ``run``. None imports torch before it runs."""
