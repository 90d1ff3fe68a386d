"""`config_of_base`: a base exported without heads, which decodes with drafts of prompt lookup alone.
Called by export/export.py."""

from pathlib import Path

from mtpd_mlx.checkpoints.format import CONFIG_NAME, BaseRef, CheckpointConfig
from mtpd_mlx.files.publish import recover
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_mlx.text.tokenizer_files import MODEL
from mtpd_onnx.dims import Dims


def is_base(folder: Path) -> bool:
    """A model folder without heads, once what a killed run was putting in place is there."""
    recover(folder)
    return (folder / MODEL).is_file() and not (folder / CONFIG_NAME).is_file()


def check_base_alone(folder: Path, options: ExportOptions) -> None:
    """ValueError in one line where something is asked of heads that are not there."""
    asked = {
        "--model": options.model is not None,
        "--allow-base-mismatch": options.allow_base_mismatch,
        "--num-draft-tokens": options.num_draft_tokens is not None,
        "--draft-head-bits": options.draft_head_bits is not None,
        "--draft-vocab": options.draft_vocab is not None,
        "--layout split": options.layout == "split",
    }
    for name, given in asked.items():
        if given:
            raise ValueError(f"{name}: {folder} is a base without heads; give a heads checkpoint, or leave {name} out")


def config_of_base(folder: Path, dims: Dims, fingerprint: str) -> CheckpointConfig:
    """What the manifest says of heads where there are none. ValueError in one line where the tokenizer is of no use."""
    Tokenizer.from_folder(folder, dims.vocab_size)
    base = BaseRef(str(folder.resolve()), fingerprint, dims.model_type, dims.hidden_size, dims.vocab_size)
    return CheckpointConfig(0, "postnorm", base)
