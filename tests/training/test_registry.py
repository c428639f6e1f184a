"""The architectures by name, and what each says of itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from training import registry
from training.architecture import Architecture
from training.registry import architectures, register

NAMES = {"mnist_mlp", "cifar10_cnn", "imdb_lstm", "imdb_gru", "vgg16_transfer", "mnist_gan", "mnist_vae"}
GATES = {
    "mnist_mlp": {"test_accuracy": 0.982},
    "cifar10_cnn": {"test_accuracy": 0.77},
    "imdb_lstm": {"test_accuracy": 0.875},
    "imdb_gru": {"test_accuracy": 0.875},
    "mnist_gan": {"digit_agreement": 0.97, "worst_digit_agreement": 0.90, "diversity": 0.70},
    "mnist_vae": {"test_elbo": -105, "auroc_cifar10": 0.99},
    "vgg16_transfer": {"above_scratch": 0.06},
}
"""What was promised of the published models; a recipe that falls short is mended, not its gate."""


@pytest.fixture
def kept_registry() -> Iterator[None]:
    """The registry as it was, after the test."""
    before = dict(architectures())
    yield
    registry._registered.clear()
    registry._registered.update(before)


def test_all_seven_are_found():
    assert set(architectures()) == NAMES


def test_what_another_one_needs_comes_first():
    order = list(architectures())
    for name, cls in architectures().items():
        assert cls.name == name
        for needed in cls.needs:
            assert order.index(needed) < order.index(name)


@pytest.mark.usefixtures("kept_registry")
def test_a_name_taken_twice_is_refused_and_both_places_are_named():
    class Another(Architecture):
        """A second one."""

    places = r"training\.architectures\.mnist_mlp, .*test_registry"
    with pytest.raises(ValueError, match=rf"'mnist_mlp' is registered twice: {places}"):
        register("mnist_mlp")(Another)
    assert architectures()["mnist_mlp"].__module__ == "training.architectures.mnist_mlp"


@pytest.mark.usefixtures("kept_registry")
def test_a_new_one_is_found_under_its_name():
    @register("lenet")
    class LeNet(Architecture):
        """One more."""

    assert architectures()["lenet"] is LeNet
    assert LeNet.name == "lenet"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_says_what_it_is_for_and_where_it_fails(name: str):
    cls = architectures()[name]
    for text in ((cls.__doc__ or "").strip().splitlines()[0], cls.intended_use, cls.limits):
        assert len(text) > 20
        assert text.endswith(".")
    assert cls.recipe["epochs"] > cls.smoke["epochs"] >= 1
    assert "optimizer" in cls.recipe


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_gates_are_those_promised(name: str):
    gates = architectures()[name].gates
    assert {figure: gate.least for figure, gate in gates.items()} == GATES[name]
    assert all(gate.smoke <= gate.least for gate in gates.values())
