# SPDX-License-Identifier: MIT
"""Drop-in modules for libraries that the ONet family was written with: change the import, keep the code."""
