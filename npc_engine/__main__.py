"""``python -m npc_engine``: the same as ``npc-engine``."""

from npc_engine.cli.main import main

main()
