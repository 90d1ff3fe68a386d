"""`GenaiPeer`: onnxruntime-genai decoding greedily, to time our decoder against. The package is not a dependency.
Called by peer/process.py and tools.

On CUDA take one process per runtime: both load onnxruntime's CUDA provider, which knows one host.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.files.json_object import read_json_object
from mtpd_onnx.errors import first_line
from mtpd_onnx.runtime.sessions import load_cuda


def import_genai() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise ImportError(
            "onnxruntime-genai is not installed; install it with: pip install onnxruntime-genai (CPU) or onnxruntime-genai-cuda"
        ) from error
    return onnxruntime_genai


class GenaiPeer:
    """A genai folder, loaded. `capacity`: positions of its cache (max_length), fixed, as in our own decoder.

    EOS does not end a text: the last token of the vocabulary stands in for it, so only that one would.
    `num_threads` is for CPUs (default: all cores; genai's own choice was seen to be one).
    """

    def __init__(self, folder: Path, capacity: int = 1024, num_threads: int | None = None):
        config = read_genai_config(folder)
        self.context_length, self.vocab_size = int(config["model"]["context_length"]), int(config["model"]["vocab_size"])
        if not 2 <= capacity <= self.context_length:
            raise ValueError(f"capacity: got {capacity}, expected 2..{self.context_length}")
        self.capacity, self.step_seconds = capacity, list[float]()
        decoder: dict[str, Any] = config["model"]["decoder"]
        self.provider = next((name for item in decoder["session_options"]["provider_options"] for name in item), "cpu")
        overlay: dict[str, Any] = {"eos_token_id": self.vocab_size - 1}
        if self.provider == "cpu":
            overlay["decoder"] = {"session_options": {"intra_op_num_threads": num_threads or os.cpu_count() or 1}}
        else:
            load_cuda()
        self._genai = import_genai()
        try:
            settings = self._genai.Config(str(folder))
            settings.overlay(json.dumps({"model": overlay}))
            self._model = self._genai.Model(settings)
        except RuntimeError as error:
            raise ValueError(f"{folder}: onnxruntime-genai cannot load it: {first_line(error)}") from error
        self._generator: Any = None

    def generate(self, prompt_ids: Sequence[int], max_tokens: int) -> tuple[list[int], float, float]:
        """(tokens, prefill seconds, decode seconds). ValueError in one line where the prompt does not fit."""
        if not prompt_ids or max_tokens < 1:
            raise ValueError(f"got {len(prompt_ids)} prompt tokens and max_tokens {max_tokens}, expected at least 1 each")
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < self.vocab_size:
            raise ValueError(f"prompt: got tokens {min(prompt_ids)}..{max(prompt_ids)}, expected 0..{self.vocab_size - 1}")
        if (needed := len(prompt_ids) + max_tokens) > self.capacity:
            raise ValueError(f"prompt and max_tokens: got {needed}, expected at most {self.capacity} (capacity)")
        generator = self._fresh_generator()
        started = time.perf_counter()
        generator.append_tokens(np.asarray(prompt_ids, dtype=np.int32))
        tokens = [next_token(generator)]
        marks = [time.perf_counter()]
        prefill_seconds = marks[0] - started
        while len(tokens) < max_tokens and not generator.is_done():
            tokens.append(next_token(generator))
            marks.append(time.perf_counter())
        self.step_seconds = np.diff(marks).tolist()
        return tokens, prefill_seconds, marks[-1] - marks[0]

    def warm_up(self, steps: int = 8) -> None:
        """Lets genai allocate its cache and, on CUDA, capture its graph."""
        self.generate([0] * min(8, self.capacity - 1), min(steps, self.capacity - min(8, self.capacity - 1)))

    def _fresh_generator(self) -> Any:
        """The generator of before, rewound: a captured CUDA graph stays. A new one where genai cannot rewind it."""
        if self._generator is not None:
            try:
                self._generator.rewind_to(0)
                return self._generator
            except RuntimeError:
                self._generator = None
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, num_beams=1, batch_size=1, max_length=self.capacity)
        self._generator = self._genai.Generator(self._model, parameters)
        return self._generator


def read_genai_config(folder: Path) -> dict[str, Any]:
    """genai_config.json. ValueError in one line where the folder is not one that genai could load."""
    file = folder / "genai_config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: not a genai folder (no genai_config.json)")
    config = read_json_object(file)
    try:
        graph = folder / config["model"]["decoder"]["filename"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a genai_config.json ({first_line(error)})") from error
    for part in (graph, graph.with_name(f"{graph.name}.data")):
        if not part.is_file():
            raise ValueError(f"{part}: missing")
    return config


def next_token(generator: Any) -> int:
    """One step, its token read back as a streaming decoder would."""
    generator.generate_next_token()
    return int(generator.get_next_tokens()[0])
