"""``python -m training ARCHITECTURE``: from data to a published model."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported, below

from training.architecture import Run
from training.datasets import DATA_DIR_VARIABLE, DatasetError
from training.export import GraphError
from training.fitting import ResumeError
from training.parity import ParityError
from training.pipeline import GateError, train
from training.registry import architectures

REPOSITORY = Path(__file__).resolve().parent.parent / "exported_models"
SMOKE_REPOSITORY = Path("runs") / "smoke"


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers within bounds."""

    def parse_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
        return value

    return parse_number


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    known = architectures()
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train an architecture on real data and publish it: exported, verified, with its report.",
        epilog=f"Data is read from ${DATA_DIR_VARIABLE} when it is set, else downloaded by keras.datasets.",
    )
    parser.add_argument(
        "architecture", choices=[*known, "all"], metavar="ARCHITECTURE", help=f"{', '.join(known)}, all"
    )
    parser.add_argument("--epochs", type=_whole_number(1, 10_000), help="in place of the recipe's own number")
    parser.add_argument(
        "--seed", type=_whole_number(0, 2**32 - 1), default=0, help="of every random choice (%(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="model repository (exported_models; in a smoke run runs/smoke, so that no toy is served)",
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        help="where checkpoints go; a run that was cut off goes on from there (runs)",
    )
    parser.add_argument("--smoke", action="store_true", help="synthetic data, seconds, every stage")
    parser.add_argument(
        "--train-per-class",
        type=_whole_number(2, 5000),
        metavar="N",
        help="cifar10_cnn, vgg16_transfer: train on N images a class",
    )
    parser.add_argument(
        "--base-weights",
        metavar="imagenet|FILE|none",
        help="vgg16_transfer: pretrained convolutions (imagenet, downloaded; in a smoke run none)",
    )
    parser.add_argument(
        "--image-size",
        type=_whole_number(32, 224),
        metavar="PIXELS",
        help="vgg16_transfer: 32 to 224 (224; in a smoke run 32)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Train what was asked for; 0 when all of it was published."""
    options = parse(arguments)
    known = architectures()
    names = list(known) if options.architecture == "all" else [options.architecture]
    with tempfile.TemporaryDirectory(prefix="sextant-") as scratch:
        checkpoints = options.checkpoints or (Path(scratch) if options.smoke else Path("runs"))
        for name in names:
            run = Run(
                output=options.output or (SMOKE_REPOSITORY if options.smoke else REPOSITORY),
                work=checkpoints / f"{name}-seed{options.seed}",
                seed=options.seed,
                epochs=options.epochs,
                smoke=options.smoke,
                train_per_class=options.train_per_class,
                base_weights=options.base_weights or ("none" if options.smoke else "imagenet"),
                image_size=options.image_size or (32 if options.smoke else 224),
            )
            try:
                train(known[name](), run)
            except (DatasetError, FileExistsError, GateError, GraphError, ParityError, ResumeError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
