# SPDX-License-Identifier: MIT
"""Training data: procedural solids, the virtual scanner and pre-generated pools."""
