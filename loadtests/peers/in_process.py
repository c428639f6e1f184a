"""The physical limit: rows a second of onnxruntime alone, in this process, on one thread.

    python -m loadtests.peers.in_process --seconds 2

prints JSON: for each payload's model, rows a second at batch 1, at every batch of 1, 2, 4, … 64, and which is best.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from loadtests.payloads import REVIEW_TOKENS, payloads
from loadtests.peers.models import EXPORTED, Graph, SentimentModel, digit_from_bytes, image_from_file

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)


def rows() -> Iterator[tuple[str, Graph, dict[str, NDArray[Any]]]]:
    """Name what is measured, its graph, and one row of the very inputs that the payload becomes behind HTTP.

    A review of n words is n + 1 ids, the start among them, 500 at most.
    """
    sent = payloads()
    yield "digit", _graph("mnist_mlp"), {"pixels": digit_from_bytes(sent["digit-raw"].body)}
    yield "image", _graph("cifar10_cnn"), {"pixels": image_from_file(sent["image-png"].body)}
    encode = SentimentModel().encoder.encode
    lstm = _graph("imdb_lstm")
    for tokens in REVIEW_TOKENS:
        name = f"sentiment-{tokens}"
        yield name, lstm, {"tokens": encode(sent[name].body.decode()).ids[None]}
    noise = np.random.default_rng(1).standard_normal((1, 64), np.float32)
    yield "gan", _graph("mnist_gan_generator"), {"noise": noise, "digit": np.array([7], np.int32)}


def measure(graph: Graph, row: Mapping[str, NDArray[Any]], seconds: float) -> dict[str, Any]:
    """Run single rows for ``seconds`` and all larger batches together for as long.

    They take ten turns each, so that a busy moment of the machine meets all of them alike.

    Returns:
        ``rows_per_second`` at batch 1, ``best_batch`` and ``best_rows_per_second``, and ``by_batch``.
    """
    batches = {size: {name: np.repeat(array, size, axis=0) for name, array in row.items()} for size in BATCHES}
    runs, spent = dict.fromkeys(BATCHES, 0), dict.fromkeys(BATCHES, 0.0)
    for inputs in batches.values():
        graph.run(**inputs)  # the first run at a size lays out its memory
    share = {size: seconds if size == 1 else seconds / (len(BATCHES) - 1) for size in BATCHES}
    for turn in range(1, 11):
        for size, inputs in batches.items():
            while spent[size] < share[size] * turn / 10:
                began = time.perf_counter()
                graph.run(**inputs)
                spent[size] += time.perf_counter() - began
                runs[size] += 1
    by_batch = {size: runs[size] * size / spent[size] for size in BATCHES}
    best = max(by_batch, key=by_batch.__getitem__)
    return {
        "rows_per_second": by_batch[1],
        "best_batch": best,
        "best_rows_per_second": by_batch[best],
        "by_batch": by_batch,
    }


def _graph(model: str) -> Graph:
    return Graph(EXPORTED / model / "1")


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers.in_process", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="at batch 1, and at all larger ones together (%(default)s)"
    )
    seconds = parser.parse_args().seconds
    print(json.dumps({name: measure(graph, row, seconds) for name, graph, row in rows()}, indent=2))


if __name__ == "__main__":
    main()
