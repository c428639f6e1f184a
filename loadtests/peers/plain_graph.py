"""The graph that tf2onnx makes of ``imdb_lstm`` as it is: a ``Loop`` over the tokens in place of one fused LSTM.

    python -m loadtests.peers.plain_graph

writes ``runs/bench/plain_imdb_lstm.onnx`` from the exported SavedModel; takes TensorFlow and half a minute.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]
_SAVED_MODEL: Final = _ROOT / "exported_models" / "imdb_lstm" / "1"
_FILE: Final = _ROOT / "runs" / "bench" / "plain_imdb_lstm.onnx"


def plain_graph() -> Path:
    """Where the graph is; made first if it is missing or older than the model, by a process of its own."""
    if not _FILE.exists() or _FILE.stat().st_mtime < (_SAVED_MODEL / "saved_model.pb").stat().st_mtime:
        subprocess.run([sys.executable, "-m", __name__], cwd=_ROOT, check=True)  # noqa: S603 - this module
    return _FILE


def _make() -> None:
    """Convert the SavedModel and put the file in place whole."""
    import tensorflow as tf  # noqa: PLC0415 - not for the server, which imports this module
    import tf2onnx  # noqa: PLC0415

    from training.export import OPSET  # noqa: PLC0415

    saved = tf.saved_model.load(str(_SAVED_MODEL))
    signature = [tf.TensorSpec((None, None), tf.int32, "tokens")]
    graph, _ = tf2onnx.convert.from_function(
        tf.function(lambda tokens: saved.signatures["serving_default"](tokens=tokens), input_signature=signature),
        input_signature=signature,
        opset=OPSET,
    )
    _FILE.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _FILE.with_suffix(".part")
    unfinished.write_bytes(graph.SerializeToString())
    unfinished.replace(_FILE)


if __name__ == "__main__":
    _make()
