"""The recurrent networks: their batches, and their graphs written from the layer's weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from serving.preprocessing.text import PADDING, pad
from training.architectures.imdb_gru import ImdbGru
from training.architectures.imdb_lstm import ImdbLstm
from training.datasets import Split
from training.parity import open_session
from training.recurrent import MAX_TOKENS, VOCABULARY_SIZE, Recurrent, draw_reviews, recurrent_onnx, review_batches


@pytest.fixture(scope="module", params=[ImdbLstm, ImdbGru], ids=["LSTM", "GRU"])
def network(request: pytest.FixtureRequest) -> keras.Model:
    """A network with every weight drawn, biases too, so that no two gates can be mistaken for each other."""
    architecture: Recurrent = request.param()
    model = architecture._network(dropout=0.0)
    random = np.random.default_rng(1)
    model.set_weights([random.normal(0, 0.15, weight.shape).astype(np.float32) for weight in model.get_weights()])
    return model


def test_the_graph_answers_as_keras_does(network: keras.Model):
    random = np.random.default_rng(2)
    rows = [random.integers(1, VOCABULARY_SIZE, length).astype(np.int32) for length in (1, 2, 17, 60)]
    tokens = pad(rows)
    (found,) = open_session(recurrent_onnx(network).SerializeToString()).run(["probability"], {"tokens": tokens})
    expected = network(tokens, training=False).numpy()
    assert np.ptp(expected) > 0.05, "answers that are all alike would prove nothing"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_padding_changes_no_answer(network: keras.Model):
    session = open_session(recurrent_onnx(network).SerializeToString())
    row = np.random.default_rng(3).integers(1, VOCABULARY_SIZE, (1, 9)).astype(np.int32)
    longer = np.full((1, MAX_TOKENS), PADDING, np.int32)
    longer[:, :9] = row
    short, long = (session.run(None, {"tokens": tokens})[0] for tokens in (row, longer))
    np.testing.assert_allclose(short, long, rtol=0, atol=1e-6)


def test_examples_are_of_mixed_lengths_up_to_the_longest():
    tokens = draw_reviews(32, np.random.default_rng(0))["tokens"]
    lengths = (tokens != PADDING).sum(axis=1)
    assert tokens.shape == (32, MAX_TOKENS)
    assert tokens.dtype == np.int32
    assert len(set(lengths.tolist())) > 20
    assert ((tokens != PADDING).cumsum(axis=1).max(axis=1) == lengths).all()
    assert all((row[:length] != PADDING).all() for row, length in zip(tokens, lengths, strict=True))


class TestReviewBatches:
    def split(self, count: int = 130) -> Split:
        """Reviews of mixed lengths; the first id tells which it is, the label follows from it."""
        random = np.random.default_rng(0)
        rows = [np.full(random.integers(1, 40), 10 + number, np.int32) for number in range(count)]
        return Split(rows, np.uint8(np.arange(count) % 2))

    def test_every_review_comes_once_an_epoch_in_another_order_each_time(self):
        split = self.split()
        batches = review_batches(split, 4, seed=0)
        assert len(batches) == 33
        orders = []
        for _ in range(2):
            order = []
            for tokens, labels in batches.as_numpy_iterator():
                assert tokens.dtype == np.int32
                assert labels.shape == (len(tokens), 1)
                assert (labels[:, 0] == (tokens[:, 0] - 10) % 2).all(), "labels go with their reviews"
                order += (tokens[:, 0] - 10).tolist()
            assert sorted(order) == list(range(len(split)))
            orders.append(order)
        assert orders[0] != orders[1]

    def test_a_batch_is_padded_at_the_end_to_its_own_longest(self):
        split = self.split()
        widths = set()
        for tokens, _ in review_batches(split, 4, seed=0).as_numpy_iterator():
            rows = [split.x[number - 10] for number in tokens[:, 0]]
            np.testing.assert_array_equal(tokens, pad(rows))
            widths.add(tokens.shape[1])
        assert len(widths) > 5

    def test_reviews_of_one_batch_are_of_similar_length(self):
        split = self.split(80)  # one pool of 20 batches: sorted from end to end
        spans = [
            np.ptp([(row != PADDING).sum() for row in tokens])
            for tokens, _ in review_batches(split, 4, seed=0).as_numpy_iterator()
        ]
        assert np.median(spans) <= 4

    def test_the_same_seed_gives_the_same_epochs(self):
        def first_epoch(seed: int) -> list[list[int]]:
            batches = review_batches(self.split(), 4, seed=seed, word_dropout=0.3)
            return [tokens.tolist() for tokens, _ in batches.as_numpy_iterator()]

        assert first_epoch(1) == first_epoch(1) != first_epoch(2)

    def test_dropped_words_shorten_reviews_and_empty_none(self):
        split = self.split()
        batches = review_batches(split, 4, seed=0, word_dropout=0.5)
        kept = np.concatenate([(tokens != PADDING).sum(axis=1) for tokens, _ in batches.as_numpy_iterator()])
        assert kept.min() >= 1
        share = kept.sum() / sum(map(len, split.x))
        assert 0.4 < share < 0.65
        everything = review_batches(split, 4, seed=0, word_dropout=1e9)
        for tokens, _ in everything.as_numpy_iterator():
            assert tokens.shape[1] == 1
            assert (tokens != PADDING).all()
