"""The one tree of errors.

::

    NpcEngineError
    ├── UserError                 something the user can mend; the message names file, field or option and the remedy
    │   ├── ConfigError           a setting out of its range
    │   ├── WorldError            a world folder or one of its files
    │   ├── ScenarioError         a scenario's file (npc_engine.runtime.scenario)
    │   ├── PatchError            a change of the world that does not apply
    │   ├── UtteranceError        what a player said is empty or too long
    │   ├── UnknownNameError      no such NPC, place, player or save
    │   ├── ModelError            a checkpoint that can't be found, read or trusted
    │   │   └── UnsupportedModelError   an architecture or option that was not verified
    │   ├── BlockMemoryError      the blocks in use don't fit in max_block_memory
    │   ├── SaveError             a save that can't be read or written
    │   ├── ContextOverflowError  a prompt that does not fit in max_context_tokens, or in the model
    │   ├── SceneError            a file of scenes for tuning or evaluation
    │   ├── SampleError           a file of samples for tuning
    │   ├── TuningError           a tuning run that can't start or go on
    │   ├── BridgeError           the bridge and its clients (game_bridge.errors)
    │   └── RecordingError        a recording that can't be read or does not verify
    ├── BlockStoreError           the store on disk can't be opened or written
    └── EngineClosedError         the engine was closed while something waited for it

Exit codes: the command line turns :class:`UserError` into one line on standard error and exit code 2.
"""

from __future__ import annotations


class NpcEngineError(Exception):
    """Base of every error that this library raises on purpose."""


class UserError(NpcEngineError):
    """A mistake that the user can mend. ``str(error)`` is one line that names the place and the remedy."""


class ConfigError(UserError):
    """A setting out of its range. The message names it."""


class WorldError(UserError):
    """A world folder or file that doesn't load. The message starts with ``file:line:``."""


class PatchError(UserError):
    """A JSON Patch that does not apply. The state is as it was before."""


class UtteranceError(UserError):
    """An utterance that is empty or longer than the limit."""


class UnknownNameError(UserError):
    """No NPC, place, player or save of that name; the message lists those that exist."""


class ModelError(UserError):
    """A checkpoint that can't be found, read or trusted."""


class UnsupportedModelError(ModelError):
    """An architecture, RoPE type or quantization that was not verified. The message names it."""


class BlockMemoryError(UserError):
    """The blocks in use don't fit in ``max_block_memory``."""


class SaveError(UserError):
    """A save that can't be read or written."""


class SceneError(UserError):
    """A file of scenes that can't be read."""


class SampleError(UserError):
    """A file of tuning samples that can't be read. The message starts with ``file:line:``."""


class TuningError(UserError):
    """A tuning run that can't start or go on; the message names option or file."""


class RecordingError(UserError):
    """A recording that can't be read, or whose replay differs."""


class ContextOverflowError(UserError):
    """A prompt and its reply that fit neither in ``max_context_tokens`` nor, maybe, in the model."""


class BlockStoreError(NpcEngineError):
    """The block store on disk can't be opened or written."""


class EngineClosedError(NpcEngineError):
    """The engine was closed while something still waited for it."""
