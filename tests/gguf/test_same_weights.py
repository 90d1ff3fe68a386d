"""Heads take every form of their base that they name, and no other base."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.gguf_models import write_source
from mtpd_onnx.export.export import export_checkpoint
from tiny import write_base, write_checkpoint

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import CONFIG_NAME, parse_config, read_config
from mtpd_mlx.checkpoints.gguf.write import import_gguf
from mtpd_mlx.checkpoints.shipped.write import export_heads
from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.options.train import DataConfig, HeadsConfig, LoraConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from mtpd_mlx.options.train import TrainOptions as Options
from mtpd_mlx.train.setup import gather


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(heads, their base in float16, the same with the integers kept): the heads name both."""
    folder = tmp_path_factory.mktemp("forms")
    source = write_source("llama", folder / "source", lambda name: "Q4_1")
    import_gguf(source.file, folder / "dense", dequantize=True)
    import_gguf(source.file, folder / "kept")
    heads = write_checkpoint(folder / "heads", folder / "dense", noise=0.02)
    config = read_config(heads)
    base = replace(config.base, same_weights=(fingerprint_base(folder / "kept"),))
    write_json(heads / CONFIG_NAME, replace(config, base=base).to_json())
    return heads, folder / "dense", folder / "kept"


def test_both_forms_load_and_another_base_does_not(forms: tuple[Path, Path, Path], tmp_path: Path) -> None:
    heads, *bases = forms
    for base in bases:
        assert load_checkpoint(heads, str(base))[0].path == base
    with pytest.raises(ValueError, match="belong to another base"):
        load_checkpoint(heads, str(write_base(tmp_path / "other", seed=7)))


def test_an_export_names_the_form_that_it_was_made_of(forms: tuple[Path, Path, Path], tmp_path: Path) -> None:
    heads, *bases = forms
    for number, base in enumerate(bases):
        manifest = export_checkpoint(heads, tmp_path / str(number), ExportOptions(model=str(base), capacity=32))
        assert manifest.base["fingerprint"] == fingerprint_base(base)
        export_heads(heads, base, tmp_path / f"shipped{number}")


def test_training_goes_on_from_heads_of_either_form(forms: tuple[Path, Path, Path], tmp_path: Path) -> None:
    heads, *bases = forms
    for base in bases:
        model, wanted = ModelConfig(model=str(base), dequantize=True), HeadsConfig(num_heads=3, init_heads=str(heads))
        rest = (LossConfig(), DataConfig(), OptimConfig(), RunConfig(out=str(tmp_path / "out")), LoraConfig())
        assert gather(Options(model, wanted, *rest)).base.path == base


@pytest.mark.parametrize("wrong", ["sha256:1", [1], [""], {"a": 1}])
def test_what_is_no_list_of_fingerprints_is_refused(forms: tuple[Path, Path, Path], wrong: object) -> None:
    values = json.loads((forms[0] / CONFIG_NAME).read_text())
    values["base"]["same_weights"] = wrong
    with pytest.raises(ValueError, match=r"^file: base\.same_weights: got .*, expected a list of fingerprints$"):
        parse_config(values, "file")


def test_heads_of_one_form_say_nothing_of_others(tiny_checkpoint: Path) -> None:
    assert "same_weights" not in json.loads((tiny_checkpoint / CONFIG_NAME).read_text())["base"]
