# SPDX-License-Identifier: MIT
"""Training of occupancy networks on procedural shapes.

``cli_main`` is the command line; ``occnets.training.config.load`` and ``occnets.training.runner.train`` are the same
from Python. Importing this package imports neither torch nor Lightning.
"""

from occnets.config import ConfigError
from occnets.training.command import cli_main
from occnets.training.config import TrainConfig, from_dict, load

__all__ = ["ConfigError", "TrainConfig", "cli_main", "from_dict", "load"]
