"""``imdb_gru``: the IMDB sentiment network with a GRU.

Reads 89.0 % of the test reviews right, after about 17 minutes of one core:

    python -m training imdb_gru
"""

from __future__ import annotations

import keras

from training.recurrent import Recurrent
from training.registry import register


@register("imdb_gru")
class ImdbGru(Recurrent):
    """Embedding(10 000, 128) → GRU(128, dropout 0.2, recurrent dropout 0.2) → Dense 1 sigmoid."""

    layer = keras.layers.GRU
