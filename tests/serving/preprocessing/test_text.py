"""Reviews to ids, by the rules under which the IMDB word index was made."""

from __future__ import annotations

import string

import numpy as np
import pytest

from serving.preprocessing.text import (
    OFFSET,
    PADDING,
    START,
    UNKNOWN,
    Encoder,
    dump_vocabulary,
    load_vocabulary,
    pad,
    tokenize,
)

WORDS = ["the", "film", "was", "don't", "good"]


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(WORDS, vocabulary_size=100, max_tokens=6)


class TestTokenize:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("The film WAS good.", ["the", "film", "was", "good"]),
            ("Good.<br /><br />The end", ["good", "br", "br", "the", "end"]),
            ("I don't; it's 'so-so'", ["i", "don't", "it's", "'so", "so'"]),
            ("tab\there\nnew\r\nline", ["tab", "here", "new", "line"]),
            ("10/10 (really)", ["10", "10", "really"]),
            ("a_b#c@d", ["a", "b", "c", "d"]),
        ],
    )
    def test_words_are_lowered_and_split_at_punctuation(self, text: str, words: list[str]) -> None:
        assert tokenize(text) == words

    @pytest.mark.parametrize("text", ["", "   ", "\n\t", "?!... --", string.punctuation.replace("'", "")])
    def test_text_without_a_word_has_none(self, text: str) -> None:
        assert tokenize(text) == []

    def test_only_ascii_letters_are_lowered(self) -> None:
        """The index was made of bytes, where "É" has no lower case."""
        assert tokenize("ÉCLAIR Été") == ["Éclair", "Été"]

    def test_only_ascii_separates(self) -> None:
        assert tokenize("a\u00a0b\u2014c d") == ["a\u00a0b\u2014c", "d"]

    def test_a_nul_or_a_lone_surrogate_is_a_letter_like_others(self) -> None:
        assert tokenize("a\0b \ud800") == ["a\0b", "\ud800"]


class TestEncoder:
    def test_ids_are_ranks_moved_by_the_offset(self, encoder: Encoder) -> None:
        encoded = encoder.encode("The film was good")
        assert encoded.ids.tolist() == [START, 1 + OFFSET, 2 + OFFSET, 3 + OFFSET, 5 + OFFSET]
        assert encoded.ids.dtype == np.int32
        assert (encoded.tokens, encoded.unknown_tokens, encoded.truncated) == (4, 0, False)

    def test_other_words_are_unknown_and_counted(self, encoder: Encoder) -> None:
        encoded = encoder.encode("the gloomy film gloomy")
        assert encoded.ids.tolist() == [START, 4, UNKNOWN, 5, UNKNOWN]
        assert (encoded.tokens, encoded.unknown_tokens) == (4, 2)

    @pytest.mark.parametrize(("vocabulary_size", "known"), [(8, 4), (7, 3), (4, 0), (9, 5), (1000, 5)])
    def test_ids_that_the_embedding_lacks_are_unknown(self, vocabulary_size: int, known: int) -> None:
        encoded = Encoder(WORDS, vocabulary_size, max_tokens=10).encode(" ".join(WORDS))
        assert encoded.unknown_tokens == len(WORDS) - known
        assert encoded.ids.max() < max(vocabulary_size, UNKNOWN + 1)

    def test_the_last_words_of_a_long_review_are_kept(self, encoder: Encoder) -> None:
        encoded = encoder.encode("the the the film was don't good good")
        assert encoded.ids.tolist() == [4, 5, 6, 7, 8, 8]
        assert (encoded.tokens, encoded.truncated) == (8, True)

    def test_the_start_marker_counts_towards_the_length(self, encoder: Encoder) -> None:
        assert not encoder.encode("the " * 5).truncated
        assert encoder.encode("the " * 6).truncated
        assert encoder.encode("the " * 6).ids.tolist() == [4] * 6

    def test_words_left_out_count_as_unknown_too(self, encoder: Encoder) -> None:
        encoded = encoder.encode("gloomy " * 3 + "the " * 6)
        assert (encoded.tokens, encoded.unknown_tokens) == (9, 3)

    @pytest.mark.parametrize("text", ["", " \n ", "?!"])
    def test_text_without_a_word_is_the_start_marker_alone(self, encoder: Encoder, text: str) -> None:
        encoded = encoder.encode(text)
        assert encoded.ids.tolist() == [START]
        assert (encoded.tokens, encoded.unknown_tokens, encoded.truncated) == (0, 0, False)

    def test_no_id_is_padding(self, encoder: Encoder) -> None:
        for text in ("", "the film", "nothing known here", "the " * 50):
            assert PADDING not in encoder.encode(text).ids

    def test_a_megabyte_of_one_word_is_cut(self, encoder: Encoder) -> None:
        encoded = encoder.encode("the " * 250_000)
        assert encoded.ids.tolist() == [4] * 6
        assert encoded.tokens == 250_000


class TestPad:
    def test_rows_are_filled_at_the_end(self) -> None:
        rows = [np.array([1, 4], np.int32), np.array([1], np.int32), np.array([1, 5, 6], np.int32)]
        batch = pad(rows)
        assert batch.dtype == np.int32
        np.testing.assert_array_equal(batch, [[1, 4, 0], [1, 0, 0], [1, 5, 6]])

    def test_one_row_is_not_padded(self) -> None:
        np.testing.assert_array_equal(pad([np.array([1, 7], np.int32)]), [[1, 7]])


class TestVocabularyFile:
    def test_every_word_keeps_its_line(self) -> None:
        """Words that hold what Unicode calls a line end, as one of IMDB's is, must not shift the others' ids."""
        words = ["the", "\x85", "a\u2028b", "\x0c", "film"]
        assert load_vocabulary(dump_vocabulary(words)) == words
