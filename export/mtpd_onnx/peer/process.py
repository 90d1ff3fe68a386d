"""onnxruntime-genai as an arm of `mtpd-onnx bench`, in a process of its own: one process cannot hold two runtimes on CUDA.

The child reads one JSON object per line, {"prompt": [ids], "max_tokens": n}, and answers with one.
"""

import atexit
import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from mtpd_mlx.speculative.bench import Arm, Run
from mtpd_onnx.errors import first_line


def genai_arm(folder: Path, capacity: int, num_threads: int | None) -> Arm:
    """Starts the child and loads the model. ValueError in one line where that fails."""
    command = [sys.executable, "-m", "mtpd_onnx.peer.process", str(folder), str(capacity), str(num_threads or 0)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(child.kill)
    _read(child)

    def decode(prompt: list[int], max_tokens: int) -> Run:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: _read says so
            print(json.dumps({"prompt": prompt, "max_tokens": max_tokens}), file=child.stdin, flush=True)
        answer = _read(child)
        return Run(answer["tokens"], answer["prefill_seconds"], answer["decode_seconds"])

    return Arm("genai", decode)


def _read(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    answer: dict[str, Any] = json.loads(line) if line else {"error": f"it ended with status {child.wait()}"}
    if "error" in answer:
        raise ValueError(f"--genai: {answer['error']}")
    return answer


def serve(folder: Path, capacity: int, num_threads: int) -> None:
    from mtpd_onnx.peer.genai import GenaiPeer

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent says it and ends this one
    try:
        peer = GenaiPeer(folder, capacity, num_threads or None)
        peer.warm_up()
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            tokens, prefill, decode = peer.generate(request["prompt"], request["max_tokens"])
            print(json.dumps({"tokens": tokens, "prefill_seconds": prefill, "decode_seconds": decode}), flush=True)
    except Exception as error:  # whatever it is, the parent says it
        print(json.dumps({"error": first_line(error)}), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
