"""Inference: checkpoints, the decoder, attention over layouts, and the engine that steps through requests.

::

    checkpoint = resolve("smollm2-135m-instruct", cache_dir)
    model = load_model(checkpoint, device="cpu", dtype=None)
    engine = InferenceEngine(model, BlockCache(...), max_context_memory=512 << 20)
    engine.submit(GenerationRequest(...))
    while engine.has_work:
        outputs = engine.step()
"""

from npc_engine.inference.adapter import Adapter, find_adapter
from npc_engine.inference.chat_template import ChatTemplate
from npc_engine.inference.checkpoint import Checkpoint, resolve
from npc_engine.inference.context_kind import open_memory
from npc_engine.inference.context_policy import ContextPolicy
from npc_engine.inference.engine import InferenceEngine, WarmUp
from npc_engine.inference.model import Model, Network, load_model
from npc_engine.inference.random_network import random_network
from npc_engine.inference.request import (
    FailedOutput,
    FinishedOutput,
    FinishReason,
    GenerationRequest,
    Output,
    Priority,
    PromptCounts,
    TokenOutput,
    WarmedOutput,
)
from npc_engine.inference.tokenizer import StreamDecoder, Tokenizer

__all__ = [
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
]
