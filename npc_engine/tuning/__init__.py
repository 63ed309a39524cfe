"""Block fine-tuning and its evaluation: the scenes that models are trained and judged on."""

from npc_engine.tuning.scenes import Scene, SceneProblem, check_scene, load_scenes, shared_names

__all__ = ["Scene", "SceneProblem", "check_scene", "load_scenes", "shared_names"]
