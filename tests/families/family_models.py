"""The reference models of tools/family_references.py, built anew in a folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from family_weights import write_weights

REFERENCES = Path(__file__).parent / "references"
NAMES = sorted(file.stem for file in REFERENCES.glob("*.json"))
TOLERANCE = 1e-4
LOSSES = "losses.json"


@dataclass(frozen=True)
class Reference:
    """`folder`: the model in Hugging Face layout; tokens and logits [T, V] as transformers computes them."""

    name: str
    folder: Path
    config: dict[str, Any]
    tokens: list[int]
    logits: np.ndarray


def build(name: str, folder: Path, shipped: bool = False) -> Reference:
    """`shipped`: with the MTP head that such a model is published with."""
    from tiny import write_tokenizer

    record = json.loads((REFERENCES / f"{name}.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer_config.json").exists():  # written last: another worker has been here
        (folder / "config.json").write_text(json.dumps(record["config"]))
        shapes = record["shapes"] | (record["shipped"] if shipped else {})
        write_weights(folder / "model.safetensors", shapes, record["norm_center"])
        write_tokenizer(folder)
    return Reference(name, folder, record["config"], record["tokens"], np.load(REFERENCES / f"{name}.npz")["logits"])


def prompts(reference: Reference) -> list[list[int]]:
    """One that the heads were trained on, and one that is new to them."""
    return [reference.tokens[:9], reference.tokens[:12:-1]]


def own_text(base: Any, prompt: list[int]) -> np.ndarray:
    """Greedy text of the base, int [B, T]: of the prompt and of parts of it."""
    from mtpd_mlx.model.generate import generate_greedy

    prompts = [prompt[i : i + 9] for i in range(0, 16, 4)]
    return np.array([p + g.tokens for p, g in zip(prompts, generate_greedy(base, prompts, 40, frozenset()), strict=True)])


def train_checkpoint(reference: Reference, folder: Path) -> Path:
    from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
    from mtpd_mlx.checkpoints.format import BaseRef, CheckpointConfig
    from mtpd_mlx.data import Batch
    from mtpd_mlx.losses.objective import Model
    from mtpd_mlx.model.base import load_base
    from mtpd_mlx.model.heads import init_heads
    from mtpd_mlx.model.load_save import save_heads
    from mtpd_mlx.options.train import LossConfig, OptimConfig
    from mtpd_mlx.train.step import Stepper

    base = load_base(str(reference.folder))
    tokens = own_text(base, reference.tokens)
    heads = init_heads(base, 2, "postnorm", seed=1)
    options = OptimConfig(iters=15, learning_rate=5e-3, warmup=1)
    stepper = Stepper(Model(base, heads, joint=False), LossConfig(loss="ce"), options)
    batch = Batch(tokens.astype(np.int32), np.ones_like(tokens), np.ones_like(tokens, dtype=bool))
    losses = [np.array(stepper.step([batch])[0])[1:3].tolist() for _ in range(options.iters)]
    stepper.sync()
    identity = fingerprint_base(reference.folder)
    kind = base.config["model_type"]
    where = BaseRef(str(reference.folder), identity, kind, base.hidden_size, base.vocab_size)
    folder.mkdir(parents=True)
    (folder / LOSSES).write_text(json.dumps(losses))
    save_heads(folder, heads, CheckpointConfig(2, "postnorm", where))
    return folder


def losses_of(checkpoint: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of the two heads that train_checkpoint trained: in its first step, in its last."""
    losses = np.array(json.loads((checkpoint / LOSSES).read_text()))
    return losses[0], losses[-1]


def head_logits(checkpoint: Path, tokens: list[int]) -> np.ndarray:
    """[T - 1, V]: of the first head, after each token and the next."""
    from mtpd_mlx.model.load_save import load_checkpoint
    from mtpd_mlx.model.runtime import mx

    base, heads, _ = load_checkpoint(checkpoint)
    row = mx.array([tokens])
    return np.array(base.logits(heads.cascade(base, base.trunk(row), row)[0])[0])[:-1]
