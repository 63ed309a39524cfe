"""The evaluation of what NPCs say: scenes, modes, figures."""

from npc_engine.tuning.quality.figures import AnswerScore, Difference, ModeResult, Share, TurnResult
from npc_engine.tuning.quality.modes import Mode, parse_mode
from npc_engine.tuning.quality.run import QualityResult, evaluate, write_transcripts

__all__ = [
    "AnswerScore",
    "Difference",
    "Mode",
    "ModeResult",
    "QualityResult",
    "Share",
    "TurnResult",
    "evaluate",
    "parse_mode",
    "write_transcripts",
]
