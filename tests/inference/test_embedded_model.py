"""The default model itself: fetched, converted, and speaking."""

from __future__ import annotations

import pytest
import torch
import transformers

from npc_engine.config import DEFAULT_MODEL, default_cache_dir
from npc_engine.inference.chat_template import ChatTemplate
from npc_engine.inference.checkpoint import Checkpoint, resolve
from npc_engine.inference.model_config import ModelConfig
from npc_engine.inference.tokenizer import Tokenizer

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return resolve(DEFAULT_MODEL, default_cache_dir())


def test_config(checkpoint: Checkpoint) -> None:
    config = ModelConfig.from_dict(checkpoint.config)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (30, 9, 3, 64)
    assert (config.vocab_size, config.max_position_embeddings, config.rope.theta) == (49152, 8192, 100_000.0)
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings


def test_default_is_its_other_name(checkpoint: Checkpoint) -> None:
    assert resolve("default", default_cache_dir()) == checkpoint


def test_speaks_with_transformers(checkpoint: Checkpoint) -> None:
    """A greedy sentence, by our template pieces: q and k are in the right order, and the pieces are right."""
    tokenizer = Tokenizer(checkpoint.folder)
    chat = ChatTemplate.load(checkpoint.folder, tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    prompt = [*chat.system_open, *tokenizer.encode_text("You are a helpful assistant."), *chat.user_open]
    prompt += [*tokenizer.encode_text("What is the capital of France?"), *chat.assistant_open]
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    reply = output[0, len(prompt) :].tolist()
    assert tokenizer.decode(reply) == "The capital of France is Paris."
    assert reply[-1] in chat.stop_ids


def test_tokenizer_cuts_digits_apart(checkpoint: Checkpoint) -> None:
    """SmolLM's pre-tokenizer, which GGUF keeps as a name only."""
    tokenizer = Tokenizer(checkpoint.folder)
    spelt = [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode_text("It costs 1234 gold.")]
    assert [piece for piece in spelt if piece.strip().isdigit()] == [b"1", b"2", b"3", b"4"]
    assert tokenizer.vocab_size == 49152
    assert len(tokenizer.control_ids) == 17
