"""What may be imported. Modules behind it may move; a name here changes by decision alone."""

from __future__ import annotations

import importlib

import pytest

SURFACE = {
    "npc_engine": [
        "EngineConfig",
        "NpcEngine",
        "NpcEngineError",
        "Reply",
        "ReplyDelta",
        "ReplyStats",
        "ReplyStream",
        "SamplingParams",
        "UserError",
        "WorldChange",
        "__version__",
    ],
    "npc_engine.blocks": [
        "Block",
        "BlockCache",
        "BlockDamage",
        "BlockId",
        "BlockKV",
        "BlockPool",
        "BlockStore",
        "CacheStats",
        "KVShape",
        "Layout",
        "ModelIdentity",
        "Placement",
        "StoreStats",
        "Tier",
    ],
    "npc_engine.dialogue": [
        "HEADER",
        "BlockText",
        "FittedLayout",
        "changed",
        "fit",
        "render_layout",
    ],
    "npc_engine.inference": [
        "Adapter",
        "ChatTemplate",
        "Checkpoint",
        "ContextPolicy",
        "FailedOutput",
        "FinishReason",
        "FinishedOutput",
        "GenerationRequest",
        "InferenceEngine",
        "Model",
        "Network",
        "Output",
        "Priority",
        "PromptCounts",
        "StreamDecoder",
        "TokenOutput",
        "Tokenizer",
        "WarmUp",
        "WarmedOutput",
        "find_adapter",
        "load_model",
        "open_memory",
        "random_network",
        "resolve",
    ],
    "npc_engine.runtime": [
        "Action",
        "BlockView",
        "Changes",
        "FinishReason",
        "LoadProgress",
        "LoadedModel",
        "ModelInfo",
        "NpcEngine",
        "NpcInfo",
        "Observer",
        "Preparation",
        "Progress",
        "Reply",
        "ReplyDelta",
        "ReplyStats",
        "ReplyStream",
        "SaveInfo",
        "SaveStore",
        "WorldChange",
        "load",
    ],
}


@pytest.mark.parametrize("name", SURFACE)
def test_exported_names(name: str) -> None:
    """`__all__` is what is written here, and every name exists."""
    module = importlib.import_module(name)
    assert module.__all__ == SURFACE[name]
    assert [each for each in module.__all__ if not hasattr(module, each)] == []
