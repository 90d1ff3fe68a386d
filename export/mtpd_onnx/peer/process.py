"""`Child`: a decoder in a process of its own, asked over pipes, since one process cannot hold two runtimes on CUDA.
Called by `mtpd-onnx bench` and tools/benchmark.

`genai_arm` is onnxruntime-genai as an arm of `mtpd-onnx bench`; tools/benchmark starts a child for every arm.

The child reads one JSON object per line, {"prompt": [ids], "max_tokens": n}, and answers with one. Its first line, unasked,
says that it is ready.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from mtpd_mlx.speculative.bench import Arm, Run
from mtpd_onnx.errors import first_line

Request = Callable[[list[int], int], dict[str, Any]]  # (prompt, max_tokens) -> an answer


class Child:
    """A child that was started and is ready. ValueError in one line, `name` first, where it fails, then and later."""

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str] | None = None):
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        atexit.register(self._process.kill)
        self.ready = self._read()

    def ask(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: _read says so
            print(json.dumps({"prompt": prompt, "max_tokens": max_tokens}), file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """Lets it end; kills it where it does not within ten seconds."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        atexit.unregister(self._process.kill)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"it ended with status {self._process.wait()}"}
        if "error" in answer:
            raise ValueError(f"{self.name}: {answer['error']}")
        return answer


def genai_arm(folder: Path, capacity: int, num_threads: int | None) -> Arm:
    """Starts the child and loads the model. ValueError in one line where that fails."""
    command = [sys.executable, "-m", "mtpd_onnx.peer.process", str(folder), str(capacity), str(num_threads or 0)]
    child = Child("--genai", command)

    def decode(prompt: list[int], max_tokens: int) -> Run:
        answer = child.ask(prompt, max_tokens)
        return Run(answer["tokens"], answer["prefill_seconds"], answer["decode_seconds"])

    return Arm("genai", decode)


def answer(open_: Callable[[], tuple[dict[str, Any], Request]]) -> None:
    """The child's side: `open_` loads what decodes and returns (what the ready line says, the decoder)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent says it and ends this one
    with own_stdout() as out:
        try:
            about, decode = open_()
            print(json.dumps({"ready": True} | about), file=out, flush=True)
            for line in sys.stdin:
                request = json.loads(line)
                print(json.dumps(decode(request["prompt"], request["max_tokens"])), file=out, flush=True)
        except Exception as error:  # whatever it is, the parent says it
            print(json.dumps({"error": first_line(error)}), file=out, flush=True)


@contextlib.contextmanager
def own_stdout() -> Iterator[IO[str]]:
    """The standard output for answers alone: what libraries print there goes to standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        yield out


def serve(folder: Path, capacity: int, num_threads: int) -> None:
    def open_peer() -> tuple[dict[str, Any], Request]:
        from mtpd_onnx.peer.genai import GenaiPeer

        peer = GenaiPeer(folder, capacity, num_threads or None)
        peer.warm_up()

        def decode(prompt: list[int], max_tokens: int) -> dict[str, Any]:
            tokens, prefill, decoding = peer.generate(prompt, max_tokens)
            return {"tokens": tokens, "prefill_seconds": prefill, "decode_seconds": decoding}

        return {}, decode

    answer(open_peer)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
