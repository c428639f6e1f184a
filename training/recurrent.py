"""What ``imdb_lstm`` and ``imdb_gru`` share: data, recipe, evaluation, and their ONNX graphs.

A Keras recurrent layer with a mask becomes a ``Loop`` in ONNX. The graph is therefore written here from the layer's
weights, with one fused operator that is given each row's length, so that a review costs its own length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import keras
import numpy as np
import onnx
import tensorflow as tf
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from serving.manifest import VOCABULARY_FILE, Metric, Preprocessing, Tensor
from serving.preprocessing.text import PADDING, dump_vocabulary, pad
from training import fitting
from training.architecture import Architecture, Arrays, Evaluation, Gate, History, Part, Run
from training.datasets import SENTIMENT_LABELS, Dataset, Split, load_imdb, sampled_rows
from training.metrics import classification

OPSET = 18

VOCABULARY_SIZE = 10_000
UNITS = 128
MAX_TOKENS = 500


def review_batches(split: Split, batch_size: int, *, seed: int, word_dropout: float = 0.0) -> tf.data.Dataset:
    """Batches of reviews of similar length, each padded to its own longest review; another order each epoch.

    Rows are shuffled, sorted by length within pools of 20 batches, and the batches shuffled. Of each review a share
    of the tokens drawn between 0 and twice ``word_dropout`` is left out, so that none is learnt by heart.

    Returns:
        Pairs of int32 (batch, time) ids and float32 (batch, 1) labels.
    """
    lengths = np.array([len(row) for row in split.x])
    random = np.random.default_rng(seed)

    def thin(ids: NDArray[np.int32]) -> NDArray[np.int32]:
        keep = random.random(len(ids)) >= random.uniform(0, 2 * word_dropout)
        keep[-1] = True  # a review is never empty
        return ids[keep]

    def epoch() -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        order = random.permutation(len(lengths))
        pools = [order[start : start + 20 * batch_size] for start in range(0, len(order), 20 * batch_size)]
        rows = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        for start in random.permutation(np.arange(0, len(rows), batch_size)):
            batch = rows[start : start + batch_size]
            yield pad([thin(split.x[row]) for row in batch]), split.y[batch].astype(np.float32)[:, None]

    signature = (tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, 1), tf.float32))
    batches = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    return batches.apply(tf.data.experimental.assert_cardinality(-(-len(split) // batch_size))).prefetch(2)


class Recurrent(Architecture):
    """Embedding(10 000, 128) → a recurrent layer of 128 units → Dense 1 sigmoid, on at most 500 tokens."""

    recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "Adam, cosine decay, clipnorm 1",
        "epochs": 8,
        "batch_size": 128,
        "learning_rate": 2e-3,
        "word_dropout": 0.3,
        "averaging": 0.995,
        "max_tokens": MAX_TOKENS,
    }
    gates: ClassVar[Mapping[str, Gate]] = {"test_accuracy": Gate(least=0.875, smoke=0.6)}
    smoke: ClassVar[Mapping[str, Any]] = {
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 5e-3,
        "max_tokens": 40,
        "averaging": 0.8,
    }
    intended_use = "Sentiment of English film reviews, as plain text."
    limits = (
        "Trained on film reviews alone: other subjects, other languages, irony and texts of mixed opinion are read "
        "poorly. Words outside the 10 000 most frequent are unknown to it, and of a text longer than 500 words only "
        "the last 500 are read."
    )
    layer: ClassVar[type[keras.layers.Layer]]

    def load(self, run: Run) -> Dataset:
        """IMDB reviews as ids."""
        max_tokens = int(self.settings(run)["max_tokens"])
        return load_imdb(seed=run.seed, smoke=run.smoke, vocabulary_size=VOCABULARY_SIZE, max_tokens=max_tokens)

    def build(self, data: Dataset, run: Run) -> keras.Model:
        """Tokens int32 (batch, time), zero-padded at the end, to the probability of "positive" float32 (batch, 1)."""
        del data, run
        return self._network(dropout=0.2)

    def _network(self, dropout: float) -> keras.Model:
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        x = keras.layers.Embedding(VOCABULARY_SIZE, UNITS, mask_zero=True, name="embedding")(tokens)
        x = self.layer(UNITS, dropout=dropout, recurrent_dropout=dropout, name="recurrent")(x)
        x = keras.layers.Dense(1, activation="sigmoid", name="probability")(x)
        return keras.Model(tokens, x, name=self.name)

    def fit(self, model: keras.Model, data: Dataset, run: Run) -> History:
        """Adam on a cosine; of the running mean of the weights the epoch of the best validation accuracy is kept."""
        recipe = self.settings(run)
        epochs, batch_size = recipe["epochs"], recipe["batch_size"]
        batches = review_batches(data.train, batch_size, seed=run.seed, word_dropout=recipe["word_dropout"])
        rate = keras.optimizers.schedules.CosineDecay(recipe["learning_rate"], epochs * len(batches))
        optimizer = keras.optimizers.Adam(rate, clipnorm=1.0, use_ema=True, ema_momentum=recipe["averaging"])
        model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
        validation = review_batches(data.validation, batch_size, seed=run.seed)
        averaged = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        return fitting.fit(model, batches, run, epochs=epochs, validation=validation, callbacks=(averaged,))

    def evaluate(self, model: keras.Model, data: Dataset, run: Run) -> Evaluation:
        """Accuracy on the test reviews, and on the sample of them that can be sent over HTTP in a minute."""
        del run
        predict = tf.function(
            lambda tokens: model(tokens, training=False),
            input_signature=[tf.TensorSpec((None, None), tf.int32)],
            autograph=False,
        )
        order = np.argsort([len(row) for row in data.test.x], kind="stable")
        probability = np.empty(len(order), np.float32)
        for start in range(0, len(order), 256):
            rows = order[start : start + 256]
            probability[rows] = predict(pad([data.test.x[row] for row in rows])).numpy()[:, 0]
        answers = (probability > 0.5).astype(np.int64)
        whole, sample = classification(answers, data.test.y, data), sampled_rows(len(answers))
        sampled = Metric(
            value=float(np.mean(answers[sample] == data.test.y[sample])),
            data=f"{data.name} test set, the {len(sample)} rows of sampled_rows",
        )
        return replace(whole, metrics={**whole.metrics, "sample_accuracy": sampled})

    def parts(self, model: keras.Model, data: Dataset, evaluation: Evaluation) -> tuple[Part, ...]:
        """The one graph, with its vocabulary."""
        del evaluation
        served = self._network(dropout=0.0)  # a layer with dropout carries a random state into every export
        served.set_weights(model.get_weights())
        tokens = served.inputs[0]
        return (
            Part(
                name=self.name,
                task="sentiment",
                model=keras.Model({"tokens": tokens}, {"probability": served(tokens)}),
                inputs=(Tensor(name="tokens", dtype="int32", shape=(None, None)),),
                outputs=(Tensor(name="probability", dtype="float32", shape=(None, 1)),),
                preprocessing=Preprocessing(
                    kind="text", parameters={"max_tokens": MAX_TOKENS, "vocabulary_size": VOCABULARY_SIZE}
                ),
                examples=draw_reviews,
                labels=SENTIMENT_LABELS,
                build_onnx=lambda: recurrent_onnx(served),
                fused=self.layer.__name__,
                trained=keras.Model({"tokens": model.inputs[0]}, {"probability": model(model.inputs[0])}),
                files={VOCABULARY_FILE: dump_vocabulary(data.words)},
            ),
        )


def draw_reviews(rows: int, random: np.random.Generator) -> Arrays:
    """Random ids in rows of mixed lengths, 1 to 500, the first of them of full length."""
    lengths = np.concatenate([[MAX_TOKENS], random.integers(1, MAX_TOKENS + 1, rows - 1)])
    return {"tokens": pad([random.integers(1, VOCABULARY_SIZE, length).astype(np.int32) for length in lengths])}


def recurrent_onnx(model: keras.Model) -> onnx.ModelProto:
    """The graph ``Gather → LSTM | GRU (with sequence_lens) → Gemm → Sigmoid`` from the Keras weights.

    Gate orders (ONNX operators LSTM-14 and GRU-14): LSTM i, o, f, c where Keras keeps i, f, c, o; GRU z, r, h in both,
    and Keras' ``reset_after=True`` is ``linear_before_reset=1``.
    """
    layer = model.get_layer("recurrent")
    kernel, recurrent, bias = (np.asarray(weight) for weight in layer.get_weights())
    kind, units = type(layer).__name__, layer.units
    if kind == "LSTM":
        order: tuple[int, ...] = (0, 3, 1, 2)
        bias = np.stack([bias, np.zeros_like(bias)])
        attributes: dict[str, Any] = {}
    else:
        order = (0, 1, 2)
        attributes = {"linear_before_reset": 1}

    def stack(weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Columns by gate, (..., gates · units) to rows by gate in ONNX's order (1, gates · units, ...)."""
        gates = np.split(weight, len(order), axis=-1)
        return np.concatenate([gates[gate] for gate in order], axis=-1).T[None]

    dense_kernel, dense_bias = model.get_layer("probability").get_weights()
    weights = {
        "embedding": model.get_layer("embedding").get_weights()[0],
        "W": stack(kernel),
        "R": stack(recurrent),
        "B": np.concatenate([stack(half)[0].reshape(-1) for half in bias])[None],
        "dense_kernel": dense_kernel,
        "dense_bias": dense_bias,
        "padding": np.array(PADDING, np.int32),
        "time_axis": np.array([1], np.int64),
        "direction_axis": np.array([0], np.int64),
    }
    recurrent_inputs = ["steps", "W", "R", "B", "lengths"]
    nodes = [
        helper.make_node("Equal", ["tokens", "padding"], ["padded"]),
        helper.make_node("Not", ["padded"], ["present"]),
        helper.make_node("Cast", ["present"], ["counts"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["counts", "time_axis"], ["lengths"], keepdims=0),
        helper.make_node("Gather", ["embedding", "tokens"], ["vectors"]),
        helper.make_node("Transpose", ["vectors"], ["steps"], perm=[1, 0, 2]),  # ONNX wants time first
        helper.make_node(kind, recurrent_inputs, ["", "last"], hidden_size=units, **attributes),
        helper.make_node("Squeeze", ["last", "direction_axis"], ["state"]),
        helper.make_node("Gemm", ["state", "dense_kernel", "dense_bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        model.name,
        [helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", "time"])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
