"""Rewriting words and numbers in texts and in regular expressions, with case and articles kept right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

TOKEN = re.compile(r"[^\W\d_]+|\d+")
"""A word or a run of digits."""

_ATOM = re.compile(
    r"\\.|\[(?:\\.|[^\]\\])*\]|\(\?(?:[aiLmsux]+\)|[aiLmsux]*:|<?[=!]|P?<\w+>)|\{\d*,?\d*\}|[^\W\d_]+|\d+|.", re.DOTALL
)
_ORDINAL_END = re.compile(r"(?:st|nd|rd|th)\b", re.IGNORECASE)
_ARTICLE = re.compile(r"(?<![\w\\'’-])(an?)([ \"“‘]+)$", re.IGNORECASE)
_VOWEL = re.compile(r"(?!eu|ewe|one\b|once|uni|use|usu|ut[ei]|uk|ur[aiu])[aeiou]|hour|honest|heir|hono", re.IGNORECASE)
_VOWEL_NUMBER = re.compile(r"8\d{0,3}$|1[18]$")
_INNER = re.compile(r"(?:[^\W\d_A-Z]|[,;\d]|\b(?:Mrs?|Ms|Dr|Prof|Capt|St)\.) $")
YEAR = re.compile(r"1\d{3}$|20\d\d$")


class Run(NamedTuple):
    """Letters or digits that stand for themselves in a pattern. `is_part`: what is next to them may add letters."""

    start: int
    end: int
    text: str
    is_part: bool


def runs(pattern: str) -> Iterator[Run]:
    """The literal words and numbers of a regular expression."""
    atoms = list(_ATOM.finditer(pattern))
    texts = [atom[0] for atom in atoms]
    for index, atom in enumerate(atoms):
        if TOKEN.fullmatch(atom[0]):
            is_part = _joins_before(texts, index) or _joins_after(texts, index)
            yield Run(atom.start(), atom.end(), atom[0], is_part)


def _joins_before(atoms: list[str], index: int) -> bool:
    before = atoms[index - 1] if index else ""
    if before == ")":
        return not _is_lookaround(atoms, index - 1) and _is_letters(atoms[index - 2])
    if before in {"?", "*", "+"} and index > 1:
        return _is_letters(atoms[index - 2])
    return _is_letters(before)


def _is_lookaround(atoms: list[str], end: int) -> bool:
    """True if the group that ends there takes up no text."""
    depth = 0
    for atom in reversed(atoms[: end + 1]):
        depth += (atom == ")") - (atom.startswith("(") and not re.fullmatch(r"\(\?\w+\)", atom))
        if depth == 0:
            return re.fullmatch(r"\(\?<?[=!]", atom) is not None
    return False


def _joins_after(atoms: list[str], index: int) -> bool:
    after = atoms[index + 1] if index + 1 < len(atoms) else ""
    if after == "?" and atoms[index].lower().endswith("s"):
        return False  # an optional plural
    if after in {"?", "*", "+"} or after.startswith("{"):
        return True
    if after in {"(", "(?:"}:
        return index + 2 < len(atoms) and _is_letters(atoms[index + 2])
    return _is_letters(after)


def _is_letters(atom: str) -> bool:
    if atom.startswith("["):
        return bool(re.search(r"[^\W_]|\\w|\\d|\\S", atom[1:])) and not atom.startswith("[^")
    return atom in {r"\w", r"\d", r"\S"} or TOKEN.fullmatch(atom) is not None


class Substitution:
    """One consistent rewriting: words (lower case → lower case) and numbers (value → value).

    `capitalized_only` words are replaced in texts only where they begin with a capital.
    """

    def __init__(
        self,
        words: Mapping[str, str],
        number: Callable[[int], int] | None = None,
        capitalized_only: frozenset[str] = frozenset(),
    ) -> None:
        self.words = words
        self._number = number
        self._capitalized_only = capitalized_only

    def text(self, text: str) -> str:
        """The text with everything replaced, articles corrected."""
        pieces = []
        last = 0
        for match in TOKEN.finditer(text):
            before = text[: match.start()][-1:]
            new = self._replace(match[0], before, text[match.end() : match.end() + 2], text[: match.start()])
            if new is not None:
                pieces += [_agree(text[last : match.start()], new), new]
                last = match.end()
        return "".join((*pieces, text[last:]))

    def pattern(self, pattern: str) -> str:
        """The regular expression that matches what it matched, rewritten. Parts of words stay as they are."""
        pieces = []
        last = 0
        for run in runs(pattern):
            after = pattern[run.end : run.end + 2]
            if run.is_part:
                continue
            if after.startswith("?") and len(run.text) > 1:
                stem = self._replace(run.text[:-1], "", "", "a ")
                new = None if stem is None else stem + run.text[-1]
            else:
                before = (
                    "" if run.start and pattern[run.start - 2 : run.start - 1] == "\\" else pattern[: run.start][-1:]
                )
                new = self._replace(run.text, before, after, "a ")
            if new is not None:
                pieces += [_agree(pattern[last : run.start], new), new]
                last = run.end
        return "".join((*pieces, pattern[last:]))

    def _replace(self, token: str, before: str, after: str, left: str) -> str | None:
        if token[0].isdigit():
            return self._digits(token, before, after)
        new = self.words.get(token.lower())
        if new is None:
            return None
        if token.lower() in self._capitalized_only and (token.islower() or not is_inner(left)):
            return None
        return _with_case(new, token)

    def _digits(self, token: str, before: str, after: str) -> str | None:
        if self._number is None or not is_plain_number(token, before, after) or YEAR.match(token):
            return None
        return str(self._number(int(token)))


def is_plain_number(token: str, before: str, after: str) -> bool:
    """True for digits that are a whole number by themselves: no time, decimal, code or long number."""
    if len(token) > 4 or token.startswith("0") or (before and (before in ".,:/_" or before.isalnum())):
        return False
    if after and after[0].isalpha():
        return _ORDINAL_END.match(after) is not None
    return not re.match(r"[.,:/]\d|_", after)


def is_inner(left: str) -> bool:
    """True if what comes after `left` stands in mid-sentence."""
    return _INNER.search(left[-6:]) is not None


def _with_case(word: str, like: str) -> str:
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word


def _agree(left: str, word: str) -> str:
    """`left` with the article at its end, if any, made to fit the word."""
    article = _ARTICLE.search(left)
    if article is None:
        return left
    is_vowel = _VOWEL_NUMBER.match(word) if word[0].isdigit() else _VOWEL.match(word)
    fitting = "an" if is_vowel else "a"
    if article[1][0] == "A":
        fitting = fitting.capitalize()
    return left[: article.start()] + fitting + article[2]
