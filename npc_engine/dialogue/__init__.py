"""From entities to the text of blocks, and from blocks to a layout. Pure: no tokens, no I/O."""

from npc_engine.dialogue.layout import FittedLayout, changed, fit
from npc_engine.dialogue.render import HEADER, BlockText, render_layout

__all__ = ["HEADER", "BlockText", "FittedLayout", "changed", "fit", "render_layout"]
