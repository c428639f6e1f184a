"""The report's pictures: learning curves, confusion matrix, sample grids. Small PNGs, one job each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from serving.preprocessing.image import encode_png, grid
from training import synthetic
from training.architecture import History

mpl.use("Agg")
_STYLE: dict[Any, Any] = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}


def learning_curves(history: History, path: Path) -> None:
    """One panel a figure, training and validation together, by epoch."""
    names = [key for key in history.rows[0] if key not in {"epoch", "seconds"} and not key.startswith("val_")]
    epochs = [row["epoch"] for row in history.rows]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.2 * len(names), 2.4), dpi=100, layout="constrained")
        for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
            for key, label in ((name, "training"), (f"val_{name}", "validation")):
                if key in history.rows[0]:
                    axes.plot(epochs, [row[key] for row in history.rows], label=label)
            axes.set_title(name.replace("_", " "))
            axes.set_xlabel("epoch")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False)
        _save(figure, path)


def confusion_matrix(confusion: NDArray[np.int64], labels: Sequence[str], title: str, path: Path) -> None:
    """Counts by true (row) and answered (column) class, shaded by share of the row."""
    size = 1.4 + 0.36 * len(labels)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(size + 0.4, size), dpi=100, layout="constrained")
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=6)
        axes.set_xticks(range(len(labels)), labels, rotation=90 if len(max(labels, key=len)) > 2 else 0)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel("answered")
        axes.set_ylabel("true")
        axes.set_title(title)
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})  # the same figure gives the same bytes


def save_grid(images: NDArray[np.uint8], columns: int, path: Path) -> None:
    """Write uint8 (n, height, width) images as one PNG, ``columns`` a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(grid(images, columns)))


class EpochGrid(keras.callbacks.Callback):
    """After each epoch, draws images and writes them to ``folder/epoch_NN.png``."""

    def __init__(self, folder: Path, draw: Callable[[], NDArray[np.uint8]], columns: int) -> None:
        super().__init__()
        self._folder, self._draw, self._columns = folder, draw, columns

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's grid."""
        del logs
        save_grid(self._draw(), self._columns, self._folder / f"epoch_{epoch + 1:02d}.png")


def film(frames: Sequence[Path], path: Path, most: int = 6) -> None:
    """Set up to ``most`` epoch grids side by side, first and last among them, in one PNG."""
    chosen = sorted({round(at) for at in np.linspace(0, len(frames) - 1, min(most, len(frames)))})
    pictures = []
    for index in chosen:
        with Image.open(frames[index]) as frame:
            pictures.append(np.pad(np.asarray(frame.convert("L")), ((0, 0), (0, 8)), constant_values=255))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.concatenate(pictures, axis=1)[:, :-8]))


def drawn_digit_rows(columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Digits drawn by our own code, one row a digit: uint8 (10 · columns, 28, 28)."""
    pixels, labels = synthetic.digits(100 * columns, seed)
    return np.concatenate([pixels[labels == digit][:columns] for digit in range(10)])
