from pathlib import Path

import pytest

from serving.settings import Settings, SettingsError, load_settings


def test_without_variables_the_defaults_hold():
    assert load_settings({}) == Settings()


def test_models_are_found_beside_the_package():
    import serving

    assert Settings().models_dir == (Path(serving.__file__).resolve().parent.parent / "exported_models",)


def test_variables_set_what_they_name():
    settings = load_settings(
        {
            "SEXTANT_MODELS": "mnist_mlp, imdb_gru",
            "SEXTANT_DEFAULT_MODELS": "image=vgg16_transfer,sentiment=imdb_gru",
            "SEXTANT_WORKERS": "2",
            "SEXTANT_DEADLINE_SECONDS": "0.5",
            "SEXTANT_ACCESS_LOG": "true",
        }
    )
    assert settings.models == ("mnist_mlp", "imdb_gru")
    assert settings.default_models == {"image": "vgg16_transfer", "sentiment": "imdb_gru"}
    assert (settings.workers, settings.deadline_seconds, settings.access_log) == (2, 0.5, True)


def test_an_empty_variable_counts_as_unset():
    assert load_settings({"SEXTANT_WORKERS": ""}).workers == Settings().workers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKERS", "many"),
        ("WORKERS", "0"),
        ("DEVICE", "tpu"),
        ("MAX_ROWS", "-1"),
        ("DEADLINE_SECONDS", "nan"),
        ("ACCESS_LOG", "perhaps"),
        ("DEFAULT_MODELS", "cifar10_cnn"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(name: str, value: str):
    with pytest.raises(SettingsError, match=rf"SEXTANT_{name}: .*{value}"):
        load_settings({f"SEXTANT_{name}": value})


def test_variables_of_other_names_are_left_alone():
    assert load_settings({"SEXTANT_SERVICE_HOST": "10.0.0.1", "SEXTANT_DATA_DIR": "/data"}) == Settings()


def test_a_file_sets_and_the_environment_overrides(tmp_path: Path):
    file = tmp_path / "sextant.toml"
    file.write_text('workers = 3\nmodels = ["mnist_mlp"]\n[default_models]\nimage = "vgg16_transfer"\n')
    settings = load_settings({"SEXTANT_CONFIG": str(file), "SEXTANT_WORKERS": "4"})
    assert settings.workers == 4
    assert settings.models == ("mnist_mlp",)
    assert settings.default_models == {"image": "vgg16_transfer"}


@pytest.mark.parametrize(
    ("content", "message"),
    [("workers = ", "is not TOML"), ("wrokers = 2", "wrokers is not a setting"), (None, "cannot be read")],
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, content: str | None, message: str):
    file = tmp_path / "sextant.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_settings({"SEXTANT_CONFIG": str(file)})


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().workers = 2  # type: ignore[misc]
