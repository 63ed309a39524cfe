"""Scenes made by rule: breadth for fine-tuning, where the scenes written by hand give depth."""

from npc_engine.tuning.generator.compose import generate_scenes

__all__ = ["generate_scenes"]
