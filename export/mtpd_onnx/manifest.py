"""`Manifest`, `read_manifest`: manifest.json, and the checks that a folder's parts fit together.
Called by everything that writes or opens a folder."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.format import CONFIG_NAME
from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_mlx.text.tokenizer_files import READ
from mtpd_onnx.layouts import BATCH, FUSED, HEADS, LAYOUTS, graphs_of
from mtpd_onnx.precision import PROVIDERS, check_precision

NAME, MAX_BYTES, MAX_NUMBER = "manifest.json", 16 << 20, 1 << 40
FORMAT, FORMAT_VERSION = "mtpd-onnx", 9
READABLE = (4, 5, 6, 7, 8, FORMAT_VERSION)
MARKED = 5  # the version from which on graphs mark tokens of logits that are not finite
ANY_DRAFTS = {"cpu": 6, "cuda": 7}  # by provider, the version from which on rounds have any number of drafts
BATCHES = 8  # the version from which on texts can be decoded side by side
WEIGHTS_NAME = "weights.bin"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`precision`: of the weights; `activations`: what is computed in (precision.py); `dims`: the numbers that shapes are made
    of; `files`: name -> {"bytes", "sha256"}; `io`: graph -> its input and output names; `weights_read`: graph -> bytes of
    weights that one run of it reads; `base`: the base that was exported, with its fingerprint; `draft_vocab`: its size D, or
    None for the whole vocabulary; `cache_sizes`: [key heads, head size] of the cache of every layer, then of every head, where
    they are not all those of `dims`; `states`: of layers that are no attention, by number, what each keeps by
    name, [heads, positions, size], 0 positions being as many as the capacity; `reach`: how many positions of a text can be
    taken back at most, where a state of it is kept (None: all); `tensors`: name -> [type, shape, first byte in weights.bin],
    in folders for CUDA; `format_version`: of READABLE."""

    layout: str
    precision: str
    activations: str
    num_heads: int
    hidden_source: str
    capacity: int
    dims: dict[str, int]
    base: dict[str, Any]
    files: dict[str, dict[str, Any]]
    io: dict[str, dict[str, list[str]]]
    weights_read: dict[str, int]
    versions: dict[str, str]
    record: dict[str, Any] = field(default_factory=dict)
    draft_vocab: int | None = None
    cache_sizes: list[list[int]] | None = None
    states: dict[str, dict[str, list[int]]] | None = None
    reach: int | None = None
    tensors: dict[str, list[Any]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def any_drafts(self) -> str | None:
        """The provider on which a round may verify any number of drafts, of any origin: "cpu" (graphs/decoder.py) or "cuda"
        (graphs/device_rounds.py). None: all rounds have the same number."""
        provider = PROVIDERS[self.activations]
        return provider if self.layout == "fused" and self.format_version >= ANY_DRAFTS[provider] else None

    @property
    def batches(self) -> bool:
        """Texts can be decoded side by side (graphs/batch.py)."""
        return self.layout == "fused" and self.format_version >= BATCHES and self.reach is None

    @property
    def whole(self) -> bool:
        """Texts side by side attend over whole caches, which every onnxruntime can (graphs/whole_caches.py)."""
        return "reach" in self.io.get(BATCH, {}).get("inputs", ())

    @property
    def graphs(self) -> tuple[str, ...]:
        """The names of its graphs."""
        return graphs_of(self.layout, self.num_heads, self.any_drafts, self.batches)

    def cache_size(self, block: int) -> tuple[int, int]:
        """Key heads and head size of a block's cache: of the base's layers, then of the heads."""
        if self.cache_sizes is None:
            return self.dims["num_kv_heads"], self.dims["head_dim"]
        heads, size = self.cache_sizes[block]
        return heads, size

    def kept(self, block: int) -> dict[str, tuple[int, int, int]]:
        """What a block keeps, by name: [heads, positions, size], 0 positions being as many as the cache has."""
        if (own := (self.states or {}).get(str(block))) is not None:
            return {name: (heads, positions, size) for name, (heads, positions, size) in own.items()}
        heads, size = self.cache_size(block)
        return dict.fromkeys(("key", "value"), (heads, 0, size))

    def write(self, folder: Path) -> None:
        write_json(folder / NAME, {"format": FORMAT} | asdict(self))


def graph_name(plain: bool, sampled: bool) -> str:
    """The graph of layout fused that decodes so."""
    return FUSED[sampled, plain]


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(folder.iterdir())
        if file.name != NAME
    }


def file_sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_manifest(folder: Path, verify: bool = False) -> Manifest:
    """Reads and checks `folder`/manifest.json: every file there and of its size (with `verify`, its sha256; small files
    always), none beside them that would change how it decodes, and the tokenizer usable. ValueError in one line otherwise."""
    file = folder / NAME
    if not file.is_file():
        other = "; it holds heads: mtpd export makes one of them" if (folder / CONFIG_NAME).is_file() else ""
        raise ValueError(f"{folder}: not an exported folder (no {NAME}){other}")
    values = read_json_object(file, limit=MAX_BYTES)
    try:
        if values.pop("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}")
        if (version := values["format_version"]) not in READABLE or type(version) is not int:
            raise ValueError(
                f"format_version: got {version!r}, expected {READABLE[0]}..{FORMAT_VERSION}; export the checkpoint again"
            )
        manifest = Manifest(**values)
        _check_values(manifest)
        _check_files(folder, manifest, verify)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file}: missing or unknown entry ({str(error).splitlines()[0]})") from error
    except ValueError as error:
        raise ValueError(f"{file}: {str(error).splitlines()[0]}") from error
    Tokenizer.from_folder(folder, manifest.dims["vocab_size"])  # refuses what cannot be decoded with
    return manifest


def _check_values(manifest: Manifest) -> None:
    if manifest.layout not in LAYOUTS:
        raise ValueError(f"layout: got {manifest.layout!r}, expected one of {', '.join(LAYOUTS)}")
    check_precision(manifest.precision, manifest.activations)
    numbers = {"num_heads": manifest.num_heads, "capacity": manifest.capacity} | manifest.dims
    for name in ("num_heads", "capacity", "num_layers", "num_kv_heads", "head_dim", "hidden_size", "vocab_size"):
        least = 0 if name == "num_heads" and manifest.layout == "fused" else 1
        if type(numbers[name]) is not int or not least <= numbers[name] < MAX_NUMBER:
            expected = "a positive integer" if least else "an integer of at least 0"
            raise ValueError(f"{name}: got {numbers[name]!r:.40}, expected {expected}")
    if (sizes := manifest.cache_sizes) is not None:
        blocks = manifest.dims["num_layers"] + manifest.num_heads
        pairs = isinstance(sizes, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in sizes)
        if not pairs or len(sizes) != blocks or not all(_is_size(n) for pair in sizes for n in pair):
            raise ValueError(f"cache_sizes: got {sizes!r:.40}, expected {blocks} pairs of positive integers")
    if (held := manifest.states) is not None:
        layers = {str(i) for i in range(manifest.dims["num_layers"])}
        if not isinstance(held, dict) or not layers >= held.keys() or not all(map(_are_sizes, held.values())):
            raise ValueError(f"states: got {held!r:.40}, expected three sizes for each name, of layers of the base")
    if manifest.reach is not None and not _is_size(manifest.reach):
        raise ValueError(f"reach: got {manifest.reach!r:.40}, expected a positive integer or null")
    read = manifest.weights_read
    if not isinstance(read, dict) or not all(type(read.get(graph)) is int for graph in manifest.graphs):
        raise ValueError(f"weights_read: got {read!r:.80}, expected bytes for each graph")
    drafted, vocabulary = manifest.draft_vocab, manifest.dims["vocab_size"]
    if drafted is not None and not (type(drafted) is int and 0 < drafted <= vocabulary):
        raise ValueError(f"draft_vocab: got {drafted!r}, expected 1..{vocabulary} or null")
    drafts = manifest.io[FUSED[False, manifest.num_heads == 0] if manifest.layout == "fused" else HEADS]["inputs"]
    stem = "past_mtp." if manifest.layout == "fused" else "past."
    heads = len({n.split(".")[1] for n in drafts if n.startswith(stem)})
    if heads != manifest.num_heads:
        raise ValueError(f"num_heads: got {manifest.num_heads}, the graph has {heads}")


def _is_size(number: object) -> bool:
    return type(number) is int and 0 < number < MAX_NUMBER


def _are_sizes(kept: object) -> bool:
    """Whether it is what a layer keeps: heads, positions (0: all) and size by name."""
    shapes: list[Any] = list(kept.values()) if isinstance(kept, dict) else [None]
    threes = all(isinstance(shape, list) and len(shape) == 3 for shape in shapes)
    return threes and all(_is_size(n) or (n == 0 and i == 1) for shape in shapes for i, n in enumerate(shape))


def _check_files(folder: Path, manifest: Manifest, verify: bool) -> None:
    for name in (*manifest.graphs, WEIGHTS_NAME, "tokenizer.json"):
        if name not in manifest.files:
            raise ValueError(f"files: {name} is not listed")
    for name in READ:
        if name not in manifest.files and (folder / name).exists():
            raise ValueError(
                f"{name}: was put into the folder after the export and would be read; remove it, or export the checkpoint again"
            )
    for name, entry in manifest.files.items():
        if Path(name).name != name or name in (".", "..") or "\\" in name or "\0" in name:
            raise ValueError(f"files: {name!r} is not a plain file name")
        path = folder / name
        if path.is_symlink() and path.resolve().parent.name != "blobs":  # as the hub's cache has them
            raise ValueError(f"files: {name!r} is a symbolic link")
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(f"{name}: got {path.stat().st_size} bytes, expected {entry['bytes']} (truncated or replaced)")
        if (verify or path.suffix in (".json", ".onnx", ".jinja")) and file_sha256(path) != entry["sha256"]:
            raise ValueError(
                f"{name}: contents differ from the export (sha256); copy the folder again, or export the checkpoint again"
            )
