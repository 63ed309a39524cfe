"""Typed access to the metadata of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import gguf

from npc_engine.errors import ModelError, UnsupportedModelError

T = TypeVar("T")


class GgufFile:
    """An open GGUF file. Tensors stay on disk until they are asked for.

    Raises :class:`ModelError` on opening a file that is missing, cut short or no GGUF.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
            self._fields: Mapping[str, Any] = {name: item.contents() for name, item in self._reader.fields.items()}
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror or error}") from error
        except (ValueError, IndexError, KeyError, OverflowError, MemoryError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: no GGUF file, or cut short ({error}); fetch it again") from error

    @property
    def architecture(self) -> str:
        return self.get("general.architecture", str)

    def get(self, key: str, kind: type[T]) -> T:
        """The value of `key`. Raises :class:`ModelError` if it is absent or not of `kind`."""
        value = self.find(key, kind)
        if value is None:
            self.fail(f"{key} is missing")
        return value

    def find(self, key: str, kind: type[T]) -> T | None:
        """The value of `key`, or None if it is absent. Raises :class:`ModelError` if it is not of `kind`."""
        value = self._fields.get(key)
        if value is not None and not isinstance(value, kind):
            self.fail(f"{key} must be of type {kind.__name__}, not {value!r}")
        return value

    def tensors(self) -> Iterator[gguf.ReaderTensor]:
        return iter(self._reader.tensors)

    def fail(self, message: str) -> NoReturn:
        raise ModelError(f"{self.path}: {message}")

    def refuse(self, message: str) -> NoReturn:
        raise UnsupportedModelError(f"{self.path}: {message}")
