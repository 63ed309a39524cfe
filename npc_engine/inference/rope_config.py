"""Rotary position embedding as a checkpoint's ``config.json`` describes it: parameters only, no tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, cast, get_args

from npc_engine.errors import ModelError, UnsupportedModelError

RopeType = Literal["default", "linear", "llama3", "yarn"]

SUPPORTED_ROPE_TYPES: Final[tuple[RopeType, ...]] = get_args(RopeType)

_DEFAULT_THETA: Final = 10_000.0
_TYPES_THAT_CHANGE_WITH_LENGTH: Final = ("dynamic", "longrope", "su")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """RoPE frequencies and attention scaling.

    The frequency of pair `i` of `head_dim / 2` starts as ``theta ** (-2 * i / head_dim)``.

    - ``linear`` divides all frequencies by `factor`.
    - ``llama3`` divides those whose wavelength exceeds ``original_max_position_embeddings / low_freq_factor`` by
      `factor`, keeps those below ``original_max_position_embeddings / high_freq_factor``, blends in between.
    - ``yarn`` (arXiv 2309.00071) divides those that turn fewer than `beta_slow` times within
      `original_max_position_embeddings` by `factor`, keeps those that turn more than `beta_fast` times, ramps in
      between (`truncate` rounds the ramp's ends to whole pairs) and multiplies cos and sin by
      `attention_factor`, which is final here: never derive it again from `factor`.

    Fields that a type does not use hold their neutral value, so that equal configs hash equally.
    """

    type: RopeType = "default"
    theta: float = _DEFAULT_THETA
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], max_position_embeddings: int, source: str) -> RopeConfig:
        """Read RoPE from a whole ``config.json``.

        transformers 5 writes ``rope_parameters`` with ``rope_theta`` inside; older checkpoints have
        ``rope_theta`` beside ``rope_scaling``, whose type may be spelt ``type``. As in transformers,
        ``rope_scaling`` wins where both stand. `max_position_embeddings` stands in for a missing original length.

        Raises :class:`UnsupportedModelError` for a type or option that was not verified, :class:`ModelError` for
        a missing or impossible number.
        """
        return _Parser(config, max_position_embeddings, source).parse()


class _Parser:
    def __init__(self, config: Mapping[str, Any], max_position_embeddings: int, source: str) -> None:
        self._source = source
        self._max_position_embeddings = max_position_embeddings
        self._key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        parameters = config.get(self._key) or {}
        if not isinstance(parameters, Mapping):
            self._fail(f"{self._key} must be an object, not {parameters!r}")
        self._parameters: Mapping[str, Any] = parameters
        self._config = config

    def parse(self) -> RopeConfig:
        rope_type = self._type()
        self._refuse_partial_rotation()
        theta = self._number("rope_theta", self._theta_beside())
        if rope_type == "default":
            return RopeConfig(theta=theta)
        if rope_type == "linear":
            return RopeConfig(type="linear", theta=theta, factor=self._number("factor"))
        original = self._original_length()
        if rope_type == "llama3":
            low, high = self._number("low_freq_factor"), self._number("high_freq_factor")
            if low >= high:
                self._fail(f"{self._key}: low_freq_factor {low} must be below high_freq_factor {high}")
            return RopeConfig(
                type="llama3",
                theta=theta,
                factor=self._number("factor"),
                original_max_position_embeddings=original,
                low_freq_factor=low,
                high_freq_factor=high,
            )
        return self._yarn(theta, original)

    def _yarn(self, theta: float, original: int) -> RopeConfig:
        factor = self._number("factor", self._max_position_embeddings / original)
        attention_factor = self._parameters.get("attention_factor")
        if attention_factor is None:
            mscale, mscale_all_dim = self._parameters.get("mscale"), self._parameters.get("mscale_all_dim")
            if mscale and mscale_all_dim:
                attention_factor = _yarn_scale(factor, self._number("mscale")) / _yarn_scale(
                    factor, self._number("mscale_all_dim")
                )
            else:
                attention_factor = _yarn_scale(factor, 1.0)
        else:
            attention_factor = self._number("attention_factor")
        truncate = self._parameters.get("truncate", True)
        return RopeConfig(
            type="yarn",
            theta=theta,
            factor=factor,
            original_max_position_embeddings=original,
            # 0 and null mean the default, as in transformers
            beta_fast=self._number("beta_fast", 32.0) if self._parameters.get("beta_fast") else 32.0,
            beta_slow=self._number("beta_slow", 1.0) if self._parameters.get("beta_slow") else 1.0,
            truncate=bool(truncate),
            attention_factor=attention_factor,
        )

    def _type(self) -> RopeType:
        if any(isinstance(value, Mapping) for value in self._parameters.values()):
            self._refuse(f"{self._key} differs between layers, which was not verified")
        name = self._parameters.get("rope_type", self._parameters.get("type", "default"))
        if name in _TYPES_THAT_CHANGE_WITH_LENGTH:
            self._refuse(
                f"RoPE type {name!r} changes its frequencies with the prompt's length, so cached keys could not be "
                f"moved; supported are {', '.join(SUPPORTED_ROPE_TYPES)}"
            )
        if name not in SUPPORTED_ROPE_TYPES:
            self._refuse(f"RoPE type {name!r} was not verified; supported are {', '.join(SUPPORTED_ROPE_TYPES)}")
        return cast(RopeType, name)

    def _refuse_partial_rotation(self) -> None:
        share = self._parameters.get("partial_rotary_factor", self._config.get("partial_rotary_factor"))
        if share is not None and share != 1:
            self._refuse(f"partial_rotary_factor {share!r} was not verified; only 1 was")

    def _theta_beside(self) -> float:
        older = self._config.get("rope_theta")
        if older is None and self._key == "rope_scaling":
            # written by both: the newer object may still hold what the older one lacks
            newer = self._config.get("rope_parameters")
            older = newer.get("rope_theta") if isinstance(newer, Mapping) else None
        return _DEFAULT_THETA if older is None else cast(float, older)

    def _original_length(self) -> int:
        key = "original_max_position_embeddings"
        value = self._config.get(key, self._parameters.get(key, self._max_position_embeddings))
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._fail(f"{self._key}: {key} must be a positive integer, not {value!r}")
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        value = self._parameters.get(key)
        if value is None:
            value = default
        if value is None:
            self._fail(f"{self._key}: {key} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            self._fail(f"{self._key}: {key} must be a positive number, not {value!r}")
        return float(value)

    def _fail(self, message: str) -> NoReturn:
        raise ModelError(f"{self._source}: {message}")

    def _refuse(self, message: str) -> NoReturn:
        raise UnsupportedModelError(f"{self._source}: {message}")


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
