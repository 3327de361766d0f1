# SPDX-License-Identifier: MIT
"""Scenes of any size: sliding windows whose halo is the network's receptive field, welded without seams."""

from occnets.scenes.receptive import ReceptiveField, receptive_field
from occnets.scenes.reconstruct import reconstruct_scene
from occnets.scenes.settings import SceneConfig

__all__ = ["ReceptiveField", "SceneConfig", "receptive_field", "reconstruct_scene"]
