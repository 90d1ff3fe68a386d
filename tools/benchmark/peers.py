"""Other projects' decoders, greedy: onnxruntime-genai, llama.cpp in this process or as its server.
Called by benchmark/child.py, as those of engines.py are."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.benchmark.arms import Common
from tools.benchmark.engines import Opened, timed

CHUNK = 512  # llama.cpp's own n_ubatch
FLASH = True  # llama.cpp's own default is to choose; with a cache of half precision on a CPU it takes it
STARTED = 120  # seconds that llama-server may take to load a model


def genai(folder: str, common: Common) -> Opened:
    from mtpd_onnx.peer.genai import GenaiPeer

    peer = GenaiPeer(Path(folder), common.capacity, common.num_threads)
    peer.warm_up()

    def decode(prompt: list[int], max_tokens: int) -> dict[str, Any]:
        tokens, prefill, decoding = peer.generate(prompt, max_tokens)
        return {"tokens": tokens, "prefill_seconds": prefill, "decode_seconds": decoding}

    version = getattr(peer._genai, "__version__", "unknown")
    return {"capacity": peer.capacity, "provider": peer.provider, "onnxruntime_genai": version}, decode


def llama_cpp(file: str, common: Common) -> Opened:
    """llama-cpp-python's low-level calls, as llama.cpp's own examples make them: no text, no sampling chain but argmax."""
    import llama_cpp as c

    threads = common.num_threads or os.cpu_count() or 1
    how: dict[str, Any] = {"n_ctx": common.capacity, "n_threads": threads, "n_threads_batch": threads, "n_ubatch": CHUNK}
    model = c.Llama(file, n_batch=2048, n_gpu_layers=-1, flash_attn=FLASH, verbose=False, **how)
    greedy = c.llama_sampler_init_greedy()

    def run(tokens: list[int]) -> None:
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            held = (c.llama_token * len(part))(*part)  # the batch points into it
            if c.llama_decode(model.ctx, c.llama_batch_get_one(held, len(part))):
                raise ValueError(f"llama.cpp cannot decode {len(tokens)} tokens in a context of {common.capacity}")

    def steps(prompt: list[int], max_tokens: int) -> Iterator[list[int]]:
        c.llama_memory_clear(c.llama_get_memory(model.ctx), True)
        run(prompt)
        for _ in range(max_tokens - 1):
            token = int(c.llama_sampler_sample(greedy, model.ctx, -1))
            yield [token]
            run([token])
        yield [int(c.llama_sampler_sample(greedy, model.ctx, -1))]

    about = {"capacity": model.n_ctx(), "llama_cpp_python": c.__version__, "weights": Path(file).name}
    return about, lambda prompt, max_tokens: timed(steps(prompt, max_tokens))


def llama_server(file: str, common: Common) -> Opened:
    """llama-server on a loopback port; times are its own, without HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(common.num_threads or os.cpu_count() or 1)
    program = shutil.which("llama-server") or "llama-server"
    command = [program, "-m", file, "-c", str(common.capacity), "-np", "1", "-t", threads, "-tb", threads, "--port", str(port)]
    server = subprocess.Popen([*command, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def decode(prompt: list[int], max_tokens: int) -> dict[str, Any]:
        wanted = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = post(port, "/completion", wanted | {"return_tokens": True, "samplers": ["top_k"], "top_k": 1})
        timings = answer["timings"]
        return {
            "tokens": answer["tokens"],
            "prefill_seconds": timings["prompt_ms"] / 1000,
            "decode_seconds": timings["predicted_ms"] / 1000,  # from the first token on
        }

    deadline = time.monotonic() + STARTED
    while True:
        try:
            decode([1], 1)
            break
        except (OSError, ValueError) as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"llama-server cannot serve {file}: {error}") from error
            time.sleep(0.5)
    return {"capacity": common.capacity, "weights": Path(file).name, "pid": server.pid}, decode


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    finally:
        connection.close()
    if response.status != 200:
        raise ValueError(f"{path}: got status {response.status}: {str(answer)[:200]}")
    return answer
