"""onnxruntime sessions: which provider, which threads, and one clear line where something is missing."""

import sys
from pathlib import Path
from typing import Any

from mtpd_onnx.cuda_stream import Stream
from mtpd_onnx.precision import PROVIDERS as PROVIDER_OF
from mtpd_onnx.precision import describe, export_options

PROVIDERS = ("auto", "cuda", "cpu")


def import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            'onnxruntime is not installed; install it with: pip install "mtpd-mlx[onnx]" (CPU) or "mtpd-mlx[onnx-gpu]"'
        ) from error
    return onnxruntime


def choose_provider(wanted: str, precision: str, activations: str) -> str:
    """ "cuda" or "cpu", whichever runs these activations; auto says which and why. ValueError where the wanted one cannot."""
    if wanted not in PROVIDERS:
        raise ValueError(f"provider: got {wanted!r}, expected one of {', '.join(PROVIDERS)}")
    ort = import_onnxruntime()
    available = "CUDAExecutionProvider" in ort.get_available_providers()
    if available and wanted != "cpu" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    if wanted == "cuda" and not available:
        raise ValueError('--provider cuda: this onnxruntime has no CUDA; install it with: pip install "mtpd-mlx[onnx-gpu]"')
    chosen, folder = PROVIDER_OF[activations], describe(precision, activations)
    if wanted == "cuda" and chosen == "cpu":
        other = export_options(precision, "cuda")
        raise ValueError(f"--provider cuda: the folder is {folder}, which CUDA cannot run; export it with {other}")
    if chosen == "cuda" and (wanted == "cpu" or not available):
        other = export_options(precision, "cpu")
        raise ValueError(f"the folder is {folder}, which the CPU cannot run; export it with {other}, or use CUDA")
    if wanted == "auto":
        reason = "" if chosen == "cuda" else f" (the folder is {folder}{'' if available else '; onnxruntime has no CUDA here'})"
        print(f"mtpd-onnx: running on {chosen}{reason}", file=sys.stderr)
    return chosen


def open_session(
    file: Path, provider: str, num_threads: int | None, captured: bool = False, stream: Stream | None = None
) -> Any:
    """A session on exactly the wanted provider; ValueError in one line when it cannot be had.

    captured: runs of fixed shapes become CUDA graphs, which is refused where a node of the graph has no CUDA kernel.
    stream: what it runs on (None: one of its own).
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    names: list[Any] = ["CPUExecutionProvider"]
    if provider == "cuda":
        settings = {"enable_cuda_graph": "1" if captured else "0"}
        if stream is not None:
            settings["user_compute_stream"] = stream.address
        names.insert(0, ("CUDAExecutionProvider", settings))
    try:
        session = ort.InferenceSession(str(file), options, providers=names)
    except Exception as error:  # onnxruntime's own exception types share no base but Exception
        raise ValueError(f"{file}: onnxruntime cannot load it: {str(error).strip().splitlines()[0]}") from error
    if provider == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise ValueError("--provider cuda: onnxruntime could not start CUDA (is the CUDA 13 runtime installed?)")
    return session
