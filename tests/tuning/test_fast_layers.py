"""Merged adapters, fused norms and cheap gathers compute what they replace, and the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from npc_engine.tuning.block_attention import take
from npc_engine.tuning.fast_layers import use_fast_layers
from tests.inference.builders import Family, tiny_checkpoint


def outputs_and_gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    logits = model(input_ids=torch.arange(24).view(2, 12)).logits
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_fast_layers_are_the_layers(family: Family, dropout: float, tmp_path: Path) -> None:
    """Whatever has biases or norms within heads; with dropout the adapters stay as they are."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path, family), dtype=torch.float32)
    settings = LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["q_proj", "v_proj", "down_proj"])
    tuned = get_peft_model(model, settings).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in tuned.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    expected = outputs_and_gradients(tuned)
    assert len(expected) > 6
    use_fast_layers(tuned)
    for fast, slow in zip(outputs_and_gradients(tuned), expected, strict=True):
        assert torch.allclose(fast, slow, rtol=1e-4, atol=1e-5 * float(slow.abs().max()))


def test_take_adds_up_what_was_taken_twice() -> None:
    """Forward and backward of indexing."""
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    index = torch.tensor([3, 0, 3, 3, 1])
    assert torch.equal(take(x, index), x[index])
    weights = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))
    (slow,) = torch.autograd.grad((x[index] * weights).sum(), x)
    (fast,) = torch.autograd.grad((take(x, index) * weights).sum(), x)
    assert torch.allclose(fast, slow)
