"""Review text to token ids, by the rules under which the IMDB word index was made.

The word index that Keras publishes was built by its classic ``Tokenizer`` under Python 2: on UTF-8 bytes,
so that only ASCII letters are lowered, with ASCII punctuation, tab and newline taken as spaces. The same
rules here make the ids of a raw review equal to those of ``keras.datasets.imdb``.

Ids are ``rank + OFFSET`` where rank 1 is the most frequent word; ids below ``OFFSET + 1`` are markers.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PADDING, START, UNKNOWN, OFFSET = 0, 1, 2, 3

_SEPARATORS = string.punctuation.replace("'", "") + "\t\n\r"
_FOLD = str.maketrans(string.ascii_uppercase + _SEPARATORS, string.ascii_lowercase + " " * len(_SEPARATORS))


@dataclass(frozen=True)
class Encoded:
    """One review as the network takes it.

    Attributes:
        ids: int32 (length,), 1 ≤ length ≤ the encoder's ``max_tokens``; never holds ``PADDING``.
        tokens: words found in the text, before truncation.
        unknown_tokens: how many of these are not in the vocabulary.
        truncated: whether words were left out to fit ``max_tokens``.
    """

    ids: NDArray[np.int32]
    tokens: int
    unknown_tokens: int
    truncated: bool


def tokenize(text: str) -> list[str]:
    """Split text into lower-case words; apostrophes stay inside words ("don't")."""
    return [word for word in text.translate(_FOLD).split(" ") if word]


class _Ids(dict[str, int]):
    """The id of every word; a look-up needs no call of ours, which is half of its time."""

    def __missing__(self, word: str) -> int:
        return UNKNOWN


class Encoder:
    """Turns text into ids for an embedding of ``vocabulary_size`` rows.

    Args:
        words: the vocabulary, most frequent first: line n of ``vocabulary.txt`` (from 1) has id n + OFFSET.
        vocabulary_size: rows of the embedding; a word whose id would not fit is unknown, as in Keras'
            ``load_data(num_words=...)``.
        max_tokens: ids kept; of a longer review the *last* ones, where its verdict usually stands.
    """

    def __init__(self, words: Iterable[str], vocabulary_size: int, max_tokens: int) -> None:
        ids = ((word, rank + OFFSET) for rank, word in enumerate(words, 1))
        self._ids = _Ids((word, id_) for word, id_ in ids if id_ < vocabulary_size)
        self.vocabulary_size = vocabulary_size
        self.max_tokens = max_tokens

    def encode(self, text: str) -> Encoded:
        """Encode one review; text without a word becomes the single id ``START``."""
        words = tokenize(text)
        ids = [START, *map(self._ids.__getitem__, words)]
        return Encoded(
            ids=np.array(ids[-self.max_tokens :], np.int32),
            tokens=len(words),
            unknown_tokens=ids.count(UNKNOWN),
            truncated=len(ids) > self.max_tokens,
        )


def dump_vocabulary(words: Iterable[str]) -> bytes:
    """The words as ``vocabulary.txt`` holds them: UTF-8, each ended by a line feed."""
    return "".join(word + "\n" for word in words).encode()


def load_vocabulary(content: bytes) -> list[str]:
    """Undo `dump_vocabulary`. Not ``splitlines``: U+0085 is a word of IMDB's, and a line end to that.

    Raises:
        UnicodeDecodeError: the content is not UTF-8.
    """
    return content.decode().removesuffix("\n").split("\n")


def pad(rows: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Stack id rows of any lengths into int32 (len(rows), longest), filled with PADDING at the end."""
    batch = np.full((len(rows), max(map(len, rows))), PADDING, np.int32)
    for row, ids in zip(batch, rows, strict=True):
        row[: len(ids)] = ids
    return batch
