"""Damaged files for every loader. A loader may accept a file or refuse it with a ValueError of one line; nothing else."""

import copy
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ODD: list[Any] = [None, True, -1, 0, 1 << 40, 1.5, float("nan"), float("inf"), "", "x", "../../etc/passwd", "\ud800", [], {}]
ODD += [[1, 2], {"a": 1}, [[[]]], "9" * 400, 1 << 70, [None], "full_attention", ["sliding_attention"] * 2]


class Damage:
    """Random damage from a seed."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def pick(self, values: list[Any]) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def bytes(self, data: bytes) -> bytes:
        """Flipped, cut, doubled or inserted bytes."""
        array = bytearray(data)
        for _ in range(int(self.rng.integers(1, 6))):
            at = int(self.rng.integers(0, max(len(array), 1)))
            kind = int(self.rng.integers(0, 4))
            if kind == 0 and array:
                array[at % len(array)] = int(self.rng.integers(0, 256))
            elif kind == 1:
                del array[at:]
            elif kind == 2:
                array[at:at] = array[: int(self.rng.integers(0, 64))]
            else:
                array[at:at] = self.rng.bytes(int(self.rng.integers(1, 9)))
        return bytes(array)

    def json(self, values: Any) -> Any:
        """A copy with some values replaced, dropped or added, anywhere in the tree."""
        changed = copy.deepcopy(values)
        for _ in range(int(self.rng.integers(1, 4))):
            place = changed
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
                if not keys:
                    break
                key = self.pick(keys)
                if isinstance(place[key], dict | list) and place[key] and self.rng.random() < 0.7:
                    place = place[key]
                    continue
                if self.rng.random() < 0.2 and isinstance(place, dict):
                    del place[key]
                else:
                    place[key] = copy.deepcopy(self.pick(ODD))
                break
        return changed

    def text(self, values: Any) -> bytes:
        kind = int(self.rng.integers(0, 10))
        if kind == 0:
            return self.bytes(json.dumps(values).encode())
        if kind == 1:
            return json.dumps(self.pick(ODD)).encode()
        if kind == 2:
            return b"[" * int(self.rng.integers(1, 100_000))
        return json.dumps(self.json(values)).encode(errors="surrogatepass")

    def safetensors(self, data: bytes) -> bytes:
        """A damaged header, or damaged bytes anywhere."""
        kind = int(self.rng.integers(0, 6))
        length = struct.unpack("<Q", data[:8])[0]
        if kind == 0:
            return self.bytes(data)
        if kind == 1:
            return struct.pack("<Q", int(self.rng.integers(0, 1 << 63))) + data[8:]
        header = self.text(json.loads(data[8 : 8 + length]))
        return struct.pack("<Q", len(header)) + header + data[8 + length :]


def sharded(base: Path) -> Path:
    """The same weights in two files with an index, beside `base`."""
    from mtpd_mlx.files.model_files import INDEX
    from mtpd_mlx.files.safetensors import RawTensors, write_raw

    folder, held = base.parent / "sharded", RawTensors.of_model(base)
    if not folder.exists():
        shutil.copytree(base, folder)
        (folder / "model.safetensors").unlink()
        files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        places = {name: files[n % 2] for n, name in enumerate(held)}
        for file in files:
            write_raw(folder / file, {name: held[name] for name, place in places.items() if place == file})
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder


def targets(base: Path, checkpoint: Path, exported: Path) -> dict[str, tuple[Path, str, Callable[[Path], Any]]]:
    """name -> (folder to damage, file in it, loader of the folder)."""
    from mtpd_onnx.dims import read_dims
    from mtpd_onnx.manifest import read_manifest
    from mtpd_onnx.weights.tensors import Tensors

    from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
    from mtpd_mlx.checkpoints.format import read_config, read_draft_tokens
    from mtpd_mlx.files.model_files import INDEX
    from mtpd_mlx.files.safetensors import RawTensors
    from mtpd_mlx.inspection.describe import describe
    from mtpd_mlx.inspection.folder_view import LocalView
    from mtpd_mlx.inspection.render import render
    from mtpd_mlx.model.base import load_base
    from mtpd_mlx.model.load_save import load_checkpoint
    from mtpd_mlx.text.tokenizer import Tokenizer

    def tensors(folder: Path) -> None:
        source = Tensors.of_base(folder, None)
        source.get("model.norm.weight", (64,))
        raw = RawTensors(sorted(folder.glob("model*.safetensors")))
        for name in raw.table:
            raw[name]

    def right_tensors(folder: Path) -> None:
        """What a damaged index leaves to be read are the tensors of these names, or it is refused."""
        found, held = RawTensors.of_model(folder), RawTensors.of_model(base)
        for name in found:
            assert np.array_equal(found[name].bits, held[name].bits), name

    def heads(folder: Path) -> None:
        read_draft_tokens(folder, read_config(folder))

    def tokenizer(folder: Path) -> None:
        found = Tokenizer.from_folder(folder)
        found.decode(found.encode("abc def"))
        if found.has_chat_template:
            found.apply_chat_template([{"role": "user", "content": "hi"}])

    def whole(folder: Path) -> None:
        render(describe(LocalView(folder)))

    return {
        "config": (base, "config.json", read_dims),
        "config, model loaded": (base, "config.json", lambda folder: load_base(str(folder))),
        "weights, model loaded": (base, "model.safetensors", lambda folder: load_base(str(folder))),
        "heads loaded": (checkpoint, "heads.safetensors", load_checkpoint),
        "config, inspected": (base, "config.json", whole),
        "safetensors": (base, "model.safetensors", tensors),
        "index": (sharded(base), INDEX, right_tensors),
        "index, model loaded": (sharded(base), INDEX, lambda folder: load_base(str(folder))),
        "safetensors, inspected": (base, "model.safetensors", whole),
        "fingerprint": (base, "model.safetensors", fingerprint_base),
        "tokenizer": (base, "tokenizer.json", tokenizer),
        "tokenizer_config": (base, "tokenizer_config.json", tokenizer),
        "heads config": (checkpoint, "mtp_config.json", heads),
        "heads config, inspected": (checkpoint, "mtp_config.json", whole),
        "heads weights": (checkpoint, "heads.safetensors", heads),
        "manifest": (exported, "manifest.json", read_manifest),
        "manifest, inspected": (exported, "manifest.json", whole),
    }


def attack(folder: Path, file: str, load: Callable[[Path], Any], seed: int, scratch: Path) -> str:
    """ "accepted" or "refused"; AssertionError where the loader does anything else. `scratch` holds a copy of `folder`."""
    good, damage = (folder / file).read_bytes(), Damage(seed)
    if file.endswith(".safetensors"):
        bad = damage.safetensors(good)
    elif file == "tokenizer.json" and seed % 2:
        bad = damage.bytes(good)
    elif file.endswith(".jsonl"):
        rows = good.splitlines(keepends=True)
        at = seed % len(rows)
        bad = b"".join([*rows[:at], damage.text(json.loads(rows[at])), b"\n", *rows[at + 1 :]])
    else:
        bad = damage.text(json.loads(good))
    return attempt(folder, file, load, bad, scratch, f"seed {seed}")


def attempt(folder: Path, file: str, load: Callable[[Path], Any], bad: bytes, scratch: Path, name: str) -> str:
    """What the loader makes of `folder` with `bad` as its file: as attack()."""
    if not scratch.exists():
        shutil.copytree(folder, scratch)
    (scratch / file).write_bytes(bad)
    try:
        load(scratch)
    except ValueError as error:
        assert "\n" not in str(error), f"{name}: more than one line: {error}"
        return "refused"
    except BaseException as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        (scratch / file).write_bytes((folder / file).read_bytes())
    return "accepted"


def ruined(good: bytes) -> dict[str, bytes]:
    """name -> contents that no loader can take for the file that `good` is."""
    return {
        "empty": b"",
        "cut in half": good[: len(good) // 2],
        "a number": b"7",
        "another kind of value": b'["x"]',
        "nested too deep": b"[" * 100_000,
        "no text": bytes(range(128, 256)),
    }
