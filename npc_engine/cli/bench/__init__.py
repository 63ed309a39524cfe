"""``npc-engine bench``: every figure that README quotes, measured on your machine."""

from npc_engine.cli.bench.commands import app

__all__ = ["app"]
