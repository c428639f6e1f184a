"""The command line: what is wrong with it is said in words that help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import pytest

from tests.training.tiny import names_below
from training.__main__ import main, parse
from training.architecture import Gate
from training.architectures.mnist_mlp import MnistMlp


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "the following arguments are required: ARCHITECTURE"),
            (["resnet"], "invalid choice: 'resnet' (choose from"),
            (["mnist_mlp", "--epochs", "0"], "--epochs: expected a whole number from 1 to 10000, got '0'"),
            (["mnist_mlp", "--epochs", "many"], "--epochs: expected a whole number from 1 to 10000, got 'many'"),
            (["mnist_mlp", "--epochs", "1.5"], "--epochs: expected a whole number from 1 to 10000, got '1.5'"),
            (["mnist_mlp", "--seed", "-1"], "--seed: expected a whole number from 0 to 4294967295, got '-1'"),
            (["mnist_mlp", "--seed", "4294967296"], "--seed: expected a whole number from 0 to 4294967295"),
            (["cifar10_cnn", "--train-per-class", "0"], "--train-per-class: expected a whole number from 2 to 5000"),
            (
                ["vgg16_transfer", "--image-size", "31"],
                "--image-size: expected a whole number from 32 to 224, got '31'",
            ),
            (["vgg16_transfer", "--image-size", "225"], "--image-size: expected a whole number from 32 to 224"),
            (["vgg16_transfer", "--image-size", "big"], "--image-size: expected a whole number from 32 to 224"),
            (["mnist_mlp", "--speed", "9"], "unrecognized arguments: --speed 9"),
        ],
    )
    def test_a_wrong_one_ends_with_two_and_its_reason(
        self, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ):
        with pytest.raises(SystemExit) as caught:
            parse(arguments)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err

    def test_an_unknown_architecture_is_told_the_known_ones(self, capsys: pytest.CaptureFixture[str]):
        with pytest.raises(SystemExit):
            parse(["resnet"])
        error = capsys.readouterr().err
        for name in ("mnist_mlp", "vgg16_transfer", "all"):
            assert name in error

    def test_the_bounds_themselves_are_taken(self):
        for size in (32, 224):
            assert parse(["vgg16_transfer", "--image-size", str(size)]).image_size == size
        assert parse(["all", "--seed", str(2**32 - 1)]).seed == 2**32 - 1

    def test_help_names_every_architecture_and_the_data_variable(self, capsys: pytest.CaptureFixture[str]):
        with pytest.raises(SystemExit) as caught:
            parse(["--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        for word in ("mnist_mlp", "mnist_vae", "$SEXTANT_DATA_DIR", "--smoke", "--base-weights", "--train-per-class"):
            assert word in text


class TestFailures:
    """What a run cannot do without ends it with 1, a line on stderr and nothing published."""

    @pytest.fixture
    def ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., str]:
        """Runs a command line in a folder of its own; gives what it said at its end."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("SEXTANT_DATA_DIR", raising=False)

        def run(*arguments: str) -> str:
            assert main([*arguments, "--output", str(tmp_path / "models")]) == 1
            assert names_below(tmp_path / "models") == []
            return capsys.readouterr().err.strip().splitlines()[-1]

        return run

    def test_missing_data(self, ends: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("SEXTANT_DATA_DIR", str(tmp_path))
        said = ends("mnist_mlp")
        assert said.startswith("mnist_mlp: SEXTANT_DATA_DIR is ")
        assert "mnist.npz is not in it" in said

    def test_missing_base_weights(self, ends: Callable[..., str]):
        said = ends("vgg16_transfer", "--smoke", "--base-weights", "nowhere.npz")
        assert said.startswith("vgg16_transfer: --base-weights nowhere.npz: expected VGG16's convolutions without top")
        assert "No such file" in said

    def test_no_download_of_base_weights(self, ends: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
        def offline(weights: str, **_: object) -> None:
            assert weights == "imagenet"
            raise RuntimeError("URL fetch failure: Name or service not known")

        monkeypatch.setattr(keras.applications, "VGG16", offline)
        said = ends("vgg16_transfer", "--smoke", "--base-weights", "imagenet")
        for part in ("could not be downloaded", "Name or service not known", "--base-weights FILE"):
            assert part in said

    def test_a_missed_gate(self, ends: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(MnistMlp, "gates", {"test_accuracy": Gate(least=2.0, smoke=2.0)})
        said = ends("mnist_mlp", "--smoke", "--epochs", "1")
        assert said.startswith("mnist_mlp: test_accuracy is 0.")
        assert said.endswith("at least 2.0 is asked")
