"""Whoever watches a running engine, a recorder for instance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from npc_engine.config import EngineConfig
from npc_engine.inference import FinishedOutput, GenerationRequest, Model
from npc_engine.runtime.reply import Reply
from npc_engine.runtime.session import Session, SessionOutputs
from npc_engine.runtime.simulation import Input


class Observer(Protocol):
    """Sees everything that a recording needs, in order, on the event loop."""

    def on_start(self, session: Session, model: Model, config: EngineConfig) -> None:
        """Before the first tick."""

    def on_tick(
        self, inputs: Sequence[Input], outputs: SessionOutputs, requests: Sequence[GenerationRequest], session: Session
    ) -> None:
        """After a tick that had inputs. `requests` are what the model is asked for `outputs.prompts`, one for one."""

    def on_reply(self, reply: Reply, finished: FinishedOutput) -> None:
        """When a reply has ended; the tick that takes it in comes later."""
