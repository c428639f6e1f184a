"""``imdb_lstm``: the IMDB sentiment network with a LSTM."""

from __future__ import annotations

from typing import ClassVar

import keras

from training.recurrent import MAX_TOKENS, Recurrent
from training.registry import register


@register("imdb_lstm")
class ImdbLstm(Recurrent):
    """Embedding(10 000, 128) → LSTM(128, dropout 0.2, recurrent dropout 0.2) → Dense 1 sigmoid."""

    layer = keras.layers.LSTM
    recipe: ClassVar = {
        "optimizer": "Adam, cosine decay, clipnorm 1",
        "epochs": 8,
        "batch_size": 128,
        "learning_rate": 2e-3,
        "word_dropout": 0.3,
        "averaging": 0.995,
        "max_tokens": MAX_TOKENS,
    }
