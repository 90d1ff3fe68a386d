"""Which file holds a tensor: by the index, and without one as transformers has it; MLX, ONNX and transformers read the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from tiny import LLAMA, write_base, write_checkpoint, write_quantised

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.cli import main
from mtpd_mlx.files.model_files import INDEX, SINGLE, model_files
from mtpd_mlx.files.safetensors import Raw, RawTensors, write_raw
from mtpd_mlx.inspection.describe import describe
from mtpd_mlx.inspection.folder_view import LocalView
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base

TEXT = [5, 9, 14, 3, 22, 41, 60]
Fill = Callable[[Path, dict[str, Raw], dict[str, Raw]], None]
CONFIG = {k: v for k, v in LLAMA.items() if k != "tie_word_embeddings"} | {"tie_word_embeddings": False}


def save_sharded(folder: Path, tensors: dict[str, Raw], count: int, index: bool = True, stem: str = "model") -> None:
    names, where = sorted(tensors), {}
    for i in range(count):
        file = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::count]}
        write_raw(folder / file, part)
        where |= dict.fromkeys(part, file)
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def edit_index(folder: Path, change: Callable[[dict], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def saved_twice(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    save_sharded(folder, old, 3)
    save_sharded(folder, new, 2)


def saved_smaller_first(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    save_sharded(folder, old, 2)
    save_sharded(folder, new, 3)


def single_beside_shards(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    write_raw(folder / SINGLE, old)
    save_sharded(folder, new, 2)


def single_beside_old_shards(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    save_sharded(folder, old, 2, index=False)
    write_raw(folder / SINGLE, new)


def index_that_names_the_single_file(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    save_sharded(folder, old, 2, index=False)
    write_raw(folder / SINGLE, new)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(new, SINGLE)}))


def index_of_shards_that_are_gone(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    """As transformers leaves it: a save removes the shards of an earlier one, but not their index."""
    save_sharded(folder, old, 2)
    for file in folder.glob("model-*.safetensors"):
        file.unlink()
    write_raw(folder / SINGLE, new)


def variant(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    write_raw(folder / "model.fp16.safetensors", old)
    write_raw(folder / SINGLE, new)


def other_names(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    write_raw(folder / SINGLE.replace("model", "model-old"), old)
    save_sharded(folder, new, 2, stem="weights")


LAYOUTS: dict[str, Fill] = {
    fill.__name__: fill
    for fill in (
        saved_twice,
        saved_smaller_first,
        single_beside_shards,
        single_beside_old_shards,
        index_that_names_the_single_file,
        index_of_shards_that_are_gone,
        variant,
        other_names,
    )
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {name: write_base(place / name, CONFIG, seed) for seed, name in enumerate(("old", "new"))}


def tensors_of(folder: Path) -> dict[str, Raw]:
    source = RawTensors([folder / SINGLE])
    return {name: source[name] for name in source}


@pytest.fixture
def made(bases: dict[str, Path], tmp_path: Path) -> Callable[[Fill], Path]:
    def make(fill: Fill) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(bases["new"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
        fill(folder, tensors_of(bases["old"]), tensors_of(bases["new"]))
        return folder

    return make


def mlx_logits(folder: Path) -> np.ndarray:
    return MLXModel(load_base(str(folder)), None).logits(TEXT)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_reader_takes_the_same_tensors(
    layout: str,
    made: Callable[[Fill], Path],
    bases: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = made(LAYOUTS[layout])
    expected = mlx_logits(bases["new"])
    caplog.clear()
    np.testing.assert_array_equal(mlx_logits(folder), expected)
    surplus = {file.name for file in folder.glob("model*.safetensors")} - {file.name for file in model_files(folder)}
    said = [record.getMessage() for record in caplog.records if str(folder) in record.getMessage()]
    assert len(said) == 1 and all(name in said[0] for name in sorted(surplus)[:4]), said
    assert fingerprint_base(folder) == fingerprint_base(bases["new"])
    seen, alone = describe(LocalView(folder)), describe(LocalView(bases["new"]))
    assert seen["supported"] and seen["remarks"] == said
    assert (seen["parameters"], seen["weight_bytes"]) == (alone["parameters"], alone["weight_bytes"])
    export_checkpoint(write_checkpoint(tmp_path / "heads", folder, 1), tmp_path / "onnx")
    plain = open_folder(tmp_path / "onnx", provider="cpu", plain=True, num_threads=1)
    np.testing.assert_allclose(plain.logits(TEXT), expected, atol=2e-4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "single_beside_shards"])
def test_transformers_takes_them_too(layout: str, made: Callable[[Fill], Path]) -> None:
    """Except where an index and a single file contradict each other: it reads the single file, and the remark says so."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = made(LAYOUTS[layout])
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = model(torch.tensor([TEXT])).logits[0].numpy()
    np.testing.assert_allclose(theirs, mlx_logits(folder), atol=2e-4)


def test_heads_come_and_go_by_the_index(made: Callable[[Fill], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """export-heads copies what is read and nothing else; import-heads reads the heads that the index names."""
    folder = made(saved_twice)
    checkpoint = write_checkpoint(tmp_path / "heads", folder, 2, noise=0.1)
    assert main(["export-heads", "--with-base", str(checkpoint), "--out", str(tmp_path / "served")]) == 0
    served = tmp_path / "served"
    assert len(list(served.glob("model*.safetensors"))) == 2
    np.testing.assert_array_equal(mlx_logits(served), mlx_logits(folder))
    assert fingerprint_base(served) == fingerprint_base(folder)
    write_raw(served / "mtp-older.safetensors", {"model.layers.2.hnorm.weight": Raw.of_floats(np.zeros(64))})
    assert main(["import-heads", str(served), "--out", str(tmp_path / "back")]) == 0
    before, after = (RawTensors([f / "heads.safetensors"]) for f in (checkpoint, tmp_path / "back"))
    assert all(np.array_equal(before[name].bits, after[name].bits) for name in before)
    assert any("mtp-older.safetensors" in record.getMessage() for record in caplog.records)


def without(names: Callable[[Path], list[Path]]) -> Fill:
    def fill(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
        save_sharded(folder, new, 2)
        for file in names(folder):
            file.unlink()

    return fill


def two_holders(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    save_sharded(folder, new, 2)
    first, second = sorted(folder.glob("model-*.safetensors"))
    source = RawTensors([second])
    write_raw(second, {name: source[name] for name in source} | {next(iter(RawTensors([first]))): Raw.of_floats(np.zeros(3))})


def after_save(change: Callable[[dict], None]) -> Fill:
    def fill(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
        save_sharded(folder, new, 2)
        edit_index(folder, change)

    return fill


def other_index(text: str) -> Fill:
    def fill(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
        save_sharded(folder, new, 2)
        (folder / INDEX).write_text(text)

    return fill


def two_saves_without_an_index(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    save_sharded(folder, old, 3, index=False)
    save_sharded(folder, new, 2, index=False)


def a_shard_short(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    save_sharded(folder, new, 3, index=False)
    (folder / "model-00002-of-00003.safetensors").unlink()


def two_variants(folder: Path, old: dict[str, Raw], new: dict[str, Raw]) -> None:
    write_raw(folder / "model.fp16.safetensors", old)
    write_raw(folder / "model.fp32.safetensors", new)


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"
FAULTS: dict[str, tuple[Fill, str]] = {
    "missing file": (without(lambda f: [f / TWO]), f"names {TWO}, which the folder does not hold"),
    "all files missing": (without(lambda f: [f / ONE, f / TWO]), f"names {ONE}, {TWO}, which the folder does not hold"),
    "missing tensor": (after_save(lambda m: m.update({"model.layers.0.x": ONE})), "missing key 'model.layers.0.x'"),
    "two holders": (two_holders, f"is in {ONE}"),
    "other shard": (after_save(lambda m: m.update({NORM: ONE if m[NORM] == TWO else TWO})), f"says that '{NORM}' is in"),
    "no JSON": (other_index('{"weight_map": '), "not valid JSON"),
    "a list": (other_index("[]"), "got list, expected an object"),
    "no map": (other_index("{}"), "weight_map: got 'None', expected a file name for each tensor"),
    "an empty map": (other_index('{"weight_map": {}}'), "weight_map: got '{}'"),
    "a number": (other_index(json.dumps({"weight_map": {"a": 3}})), "got '3', expected the name of a safetensors file"),
    "out of the folder": (other_index(json.dumps({"weight_map": {"a": "../x.safetensors"}})), "got '../x.safetensors'"),
    "pickled": (other_index(json.dumps({"weight_map": {"a": "pytorch_model.bin"}})), "got 'pytorch_model.bin'"),
    "two saves": (two_saves_without_an_index, "remove those that are out of date"),
    "a shard short": (a_shard_short, "model-00002-of-00003.safetensors is missing"),
    "two variants": (two_variants, "expected it once"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_contradicts_itself_is_refused_in_one_line(
    fault: str, made: Callable[[Fill], Path], bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fill, word = FAULTS[fault]
    checkpoint, folder, out = write_checkpoint(tmp_path / "heads", bases["new"], 1), made(fill), str(tmp_path / "out")
    of_model = ["--model", str(folder)]
    capsys.readouterr()
    for arguments in (
        ["inspect", str(folder)],
        ["generate", str(folder), "--plain", "--prompt", "a"],
        ["export", str(checkpoint), *of_model, "--out", out],
        ["export-heads", "--with-base", str(checkpoint), *of_model, "--out", out],
        ["import-heads", str(folder), "--out", out],
    ):
        assert main(arguments) == 1, arguments
        lines = capsys.readouterr().err.strip().splitlines()
        found = word if fault != "two variants" or arguments[0] != "inspect" else "expected it in one file"
        assert len(lines) == 1 and found in lines[0], (arguments, lines)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_the_index_forgets_is_read(made: Callable[[Fill], Path], bases: dict[str, Path]) -> None:
    """As transformers and mlx_lm read it; a fingerprint from before there was a reader of the index stays what it was."""
    folder = made(after_save(lambda m: m.pop(NORM) and None))
    assert fingerprint_base(folder) == fingerprint_base(bases["new"])
    np.testing.assert_array_equal(mlx_logits(folder), mlx_logits(bases["new"]))
    assert any(NORM in remark for remark in describe(LocalView(folder))["remarks"])


def test_heads_of_an_index_that_are_not_there_leave_the_base_alone(
    made: Callable[[Fill], Path], bases: dict[str, Path]
) -> None:
    folder = made(after_save(lambda m: m.update({"mtp.fc.weight": "mtp.safetensors"})))
    assert fingerprint_base(folder) == fingerprint_base(bases["new"])
    np.testing.assert_array_equal(mlx_logits(folder), mlx_logits(bases["new"]))


def test_a_quantised_folder_saved_twice(bases: dict[str, Path], tmp_path: Path) -> None:
    """mlx_lm writes an index beside a single file too."""
    new = write_quantised(tmp_path / "new", bases["new"], 4)
    folder = tmp_path / "model"
    shutil.copytree(new, folder)
    save_sharded(folder, tensors_of(bases["old"]), 2, index=False)
    np.testing.assert_array_equal(mlx_logits(folder), mlx_logits(new))
    assert fingerprint_base(folder) == fingerprint_base(new)
