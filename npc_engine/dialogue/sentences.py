"""Finding the ends of sentences in speech while it streams."""

from __future__ import annotations

import re
from typing import Final

# What ends a sentence: a run of stops with closing quotes and brackets, once white space or another sentence follows.
# "..." may go on, and so may an abbreviation; a subtitle that changes a word early does no harm.
_END: Final = re.compile(r"[.!?…]+[\"'”’»)\]」』]*(?=\s)|[。！？]+[\"'”’»)\]」』]*(?![.!?…。！？\"'”’»)\]」』])|\n+")
_ABBREVIATION: Final = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Sgt|Capt|vs|etc|No|Jr|Sr|e\.g|i\.e|[A-Z])\.$")


class SentenceSplitter:
    """Cuts a stream of text at the ends of its sentences.

    An end is known when the next character arrives, so white space after a stop goes with the next piece.
    """

    def __init__(self) -> None:
        self._sentence = ""  # what was handed out of the sentence that is not over yet

    def feed(self, text: str) -> list[tuple[str, bool]]:
        """Pieces of `text` with whether each ends a sentence. Together they are exactly `text`.

        A piece may be empty: the sentence ended with what was fed before.
        """
        pieces: list[tuple[str, bool]] = []
        seen = self._sentence + text
        start = len(self._sentence)
        begin = 0  # of the current sentence within `seen`
        for match in _END.finditer(seen):
            end = match.end()
            if end < start or end == len(seen) or _ABBREVIATION.search(seen[begin:end]):
                continue
            if not seen[begin:end].strip():
                continue
            pieces.append((seen[start:end], True))
            start = begin = end
        if start < len(seen):
            pieces.append((seen[start:], False))
        self._sentence = seen[begin:]
        return pieces

    @property
    def is_open(self) -> bool:
        """True if the last sentence has begun and not been handed out as ended: it ends with the speech."""
        return bool(self._sentence.strip())
