"""Where sentences end in speech that streams."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from npc_engine.dialogue.sentences import SentenceSplitter


def sentences(pieces: list[str]) -> list[str]:
    """Feed the pieces; returns the sentences, the last one being open."""
    splitter = SentenceSplitter()
    found = [""]
    for piece in pieces:
        for text, ends in splitter.feed(piece):
            found[-1] += text
            if ends:
                found.append("")
    assert splitter.is_open == bool(found[-1].strip())
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two? Three", ["One.", " Two?", " Three"]),
        ("One.", ["One."]),
        ('"Stop!" he said.', ['"Stop!"', " he said."]),
        ("Wait... what", ["Wait...", " what"]),
        ("Mr. Reed and Dr. Ash met. Good.", ["Mr. Reed and Dr. Ash met.", " Good."]),
        ("It costs 3.50 now. Yes", ["It costs 3.50 now.", " Yes"]),
        ("J. Reed came. So", ["J. Reed came.", " So"]),
        ("First line\nSecond", ["First line\n", "Second"]),
        ("龍は眠る。起きる。", ["龍は眠る。", "起きる。"]),
        ("「止まれ！」と言う", ["「止まれ！」", "と言う"]),
        ("", [""]),
        ("   ", ["   "]),
        ("Ha ha!! Really?! Yes", ["Ha ha!!", " Really?!", " Yes"]),
    ],
)
def test_ends_of_sentences(text: str, expected: list[str]) -> None:
    """The same ends, whether the text comes whole or character by character."""
    assert sentences([text]) == expected
    assert sentences(list(text)) == expected


speech = st.text(st.sampled_from("aB .!?\"')\n。！」…Mr"), max_size=40)


@given(text=speech, cuts=st.lists(st.integers(0, 40), max_size=8))
def test_the_pieces_are_the_text_however_it_is_cut(text: str, cuts: list[int]) -> None:
    """Nothing is lost, doubled or moved."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert "".join(sentences([text[a:b] for a, b in pairwise(edges)])) == text


@given(text=speech, cuts=st.lists(st.integers(0, 40), max_size=8))
@example(text="a。? ", cuts=[3])
@example(text="a。) ", cuts=[3])
def test_the_ends_do_not_depend_on_the_tokens(text: str, cuts: list[int]) -> None:
    """A sentence ends where it ends, not where a token happens to."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert sentences([text[a:b] for a, b in pairwise(edges)]) == sentences([text])


def test_an_end_is_told_with_the_next_character() -> None:
    """The stop alone may go on ("..."); the piece that tells of the end is empty."""
    splitter = SentenceSplitter()
    assert splitter.feed("Yes.") == [("Yes.", False)]
    assert splitter.is_open
    assert splitter.feed(" N") == [("", True), (" N", False)]
