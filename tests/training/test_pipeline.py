"""What stops a model on its way, and that nothing of a stopped one appears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from serving.manifest import Metric, file_digests, read_manifest
from tests.training.tiny import Tiny, names_below, tiny_run
from training.architecture import Evaluation, Gate, Part
from training.datasets import Dataset
from training.export import GraphError, convert
from training.fitting import ResumeError
from training.parity import ParityError
from training.pipeline import GateError, gate, train


def metrics(**values: float) -> Mapping[str, Metric]:
    return {name: Metric(value=value, data="made up") for name, value in values.items()}


class TestGate:
    def test_figures_that_reach_their_bounds_are_summed_up(self):
        gates = {"accuracy": Gate(least=0.9, smoke=0.1)}
        assert gate(gates, metrics(accuracy=0.9, other=0.0), smoke=False) == "accuracy 0.9000 ≥ 0.9"

    def test_every_figure_that_misses_is_named_with_its_bound(self):
        gates = {name: Gate(least=0.9, smoke=0.1) for name in ("accuracy", "recall", "precision")}
        with pytest.raises(GateError) as caught:
            gate(gates, metrics(accuracy=0.8999, recall=0.95, precision=-2.0), smoke=False)
        assert (
            str(caught.value)
            == "accuracy is 0.8999, at least 0.9 is asked; precision is -2.0000, at least 0.9 is asked"
        )

    def test_a_figure_that_is_not_a_number_misses(self):
        with pytest.raises(GateError, match="elbo is nan, at least -500 is asked"):
            gate({"elbo": Gate(least=-105, smoke=-500)}, metrics(elbo=float("nan")), smoke=True)

    def test_a_smoke_run_is_held_against_its_own_bounds(self):
        gates = {"accuracy": Gate(least=0.9, smoke=0.1)}
        gate(gates, metrics(accuracy=0.5), smoke=True)
        with pytest.raises(GateError):
            gate(gates, metrics(accuracy=0.5), smoke=False)


class TestTrain:
    def test_a_second_run_publishes_the_next_version_beside_the_first(self, tmp_path: Path):
        (first,) = train(Tiny(), tiny_run(tmp_path))
        before = file_digests(first)
        (second,) = train(Tiny(), tiny_run(tmp_path, seed=1))
        assert [path.relative_to(tmp_path / "models").as_posix() for path in (first, second)] == ["tiny/1", "tiny/2"]
        assert file_digests(first) == before
        assert [read_manifest(path).version for path in (first, second)] == [1, 2]
        assert [read_manifest(path).seed for path in (first, second)] == [0, 1]
        assert names_below(tmp_path / "models") == ["tiny"]
        assert names_below(tmp_path / "work") == [], "checkpoints of a published model are of no more use"

    def test_the_same_seed_gives_the_same_model(self, tmp_path: Path):
        one, other = (np.load(train(Tiny(), tiny_run(tmp_path / name))[0] / "golden.npz") for name in ("a", "b"))
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])

    def test_checkpoints_of_other_options_are_not_gone_on_from(self, tmp_path: Path):
        class Cut(Tiny):
            """Stops when it has been trained."""

            def evaluate(self, *_: object) -> Evaluation:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(Cut(), tiny_run(tmp_path))
        with pytest.raises(ResumeError, match=r"work holds a run .*; epochs was 1, now is 2; seed was 0, now is 1\. "):
            train(Tiny(), tiny_run(tmp_path, epochs=2, seed=1))
        (published,) = train(Tiny(), tiny_run(tmp_path))
        assert read_manifest(published).seed == 0

    def test_a_missed_gate_publishes_nothing(self, tmp_path: Path):
        class TooGood(Tiny):
            """Asks for what no accuracy can be."""

            gates = {"test_accuracy": Gate(least=0.0, smoke=1.5)}  # noqa: RUF012

        with pytest.raises(GateError, match=r"test_accuracy is 0\.\d{4}, at least 1\.5 is asked"):
            train(TooGood(), tiny_run(tmp_path))
        assert names_below(tmp_path / "models") == []

    def test_a_graph_of_other_weights_publishes_nothing(self, tmp_path: Path):
        class Mixed(Tiny):
            """Exports the weights of another model."""

            def parts(self, model: keras.Model, data: Dataset, evaluation: Evaluation) -> tuple[Part, ...]:
                other = self.build(data, tiny_run(tmp_path))
                return (with_graph(self, model, other, data, evaluation),)

        with pytest.raises(ParityError, match=r"tiny: onnxruntime differs from Keras by .* allowed is 1e-05"):
            train(Mixed(), tiny_run(tmp_path))
        assert names_below(tmp_path / "models") == []

    def test_a_failing_part_keeps_the_good_one_back_too(self, tmp_path: Path):
        class Halves(Tiny):
            """Two parts, the second of them with the weights of another model."""

            def parts(self, model: keras.Model, data: Dataset, evaluation: Evaluation) -> tuple[Part, ...]:
                other = self.build(data, tiny_run(tmp_path))
                bad = replace(with_graph(self, model, other, data, evaluation), name="tiny_half")
                return (*super().parts(model, data, evaluation), bad)

        with pytest.raises(ParityError, match="tiny_half"):
            train(Halves(), tiny_run(tmp_path))
        assert names_below(tmp_path / "models") == []

    def test_an_answer_that_is_not_a_number_fails_the_parity(self, tmp_path: Path):
        class Broken(Tiny):
            """Weights that overflowed."""

            def parts(self, model: keras.Model, data: Dataset, evaluation: Evaluation) -> tuple[Part, ...]:
                model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
                return super().parts(model, data, evaluation)

        with pytest.raises(ParityError, match="by nan"):
            train(Broken(), tiny_run(tmp_path))
        assert names_below(tmp_path / "models") == []

    def test_a_graph_that_breaks_its_promise_publishes_nothing(self, tmp_path: Path):
        class Recurrent(Tiny):
            """Promises a fused operator that its graph does not hold."""

            def parts(self, model: keras.Model, data: Dataset, evaluation: Evaluation) -> tuple[Part, ...]:
                return tuple(replace(part, fused="LSTM") for part in super().parts(model, data, evaluation))

        with pytest.raises(GraphError, match="tiny: expected one fused LSTM"):
            train(Recurrent(), tiny_run(tmp_path))
        assert names_below(tmp_path / "models") == []

    def test_an_interruption_before_publication_leaves_the_checkpoints_alone(self, tmp_path: Path):
        class Unplugged(Tiny):
            """Stops when the report is due."""

            def parts(self, *_: object) -> tuple[Part, ...]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(Unplugged(), tiny_run(tmp_path))
        assert names_below(tmp_path / "models") == []
        assert names_below(tmp_path / "work") == ["fit", "run.json"]


def with_graph(
    architecture: Tiny, model: keras.Model, other: keras.Model, data: Dataset, evaluation: Evaluation
) -> Part:
    """The part of ``model`` with the graph of ``other``."""
    (ours,) = Tiny.parts(architecture, model, data, evaluation)
    (theirs,) = Tiny.parts(architecture, other, data, evaluation)
    return replace(ours, build_onnx=lambda: convert(theirs))
