"""`open_session`, `choose_provider`: onnxruntime sessions; if something is missing, one clear line.
Called by whatever opens a graph."""

import contextlib
import ctypes
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtpd_mlx.options.runtime import PROVIDERS
from mtpd_onnx.errors import first_line
from mtpd_onnx.precision import PROVIDERS as PROVIDER_OF
from mtpd_onnx.precision import describe, export_options
from mtpd_onnx.runtime.cuda_runtime import check_device
from mtpd_onnx.runtime.cuda_stream import Stream
from mtpd_onnx.runtime.threads import set_threads

logger = logging.getLogger(__name__)
INSTALL_CUDA = 'install it with: pip install -e ".[onnx-gpu]"'
MOST_THREADS = 64  # where there are fewer CPUs: each one more slows the others down
CUDA_SETTINGS = {"ep.cuda.enable_gemm_auto_tune": "1"}  # of products of few rows the quickest kernel, timed at the first run
ERROR, FATAL = 3, 4  # severities of onnxruntime's own log


def import_onnxruntime() -> Any:
    """The onnxruntime module. ImportError that says how to install it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            'onnxruntime is not installed; install it with: pip install -e ".[onnx]" (CPU) or ".[onnx-gpu]"'
        ) from error
    return onnxruntime


def choose_provider(wanted: str, precision: str, activations: str) -> str:
    """ "cuda" or "cpu", whichever runs these activations; auto says which and why. CUDA's libraries are then loaded.

    ValueError where the wanted one cannot run them, or CUDA cannot start.
    """
    if wanted not in PROVIDERS:
        raise ValueError(f"provider: got {wanted!r}, expected one of {', '.join(PROVIDERS)}")
    available = "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()
    if wanted == "cuda" and not available:
        raise ValueError(f"--provider cuda: this onnxruntime has no CUDA; {INSTALL_CUDA}")
    chosen, folder = PROVIDER_OF[activations], describe(precision, activations)
    for_cuda, for_cpu = (export_options(precision, provider) for provider in ("cuda", "cpu"))
    if wanted == "cuda" and chosen == "cpu":
        raise ValueError(f"--provider cuda: the folder is {folder}, which CUDA cannot run; export it with {for_cuda}")
    if chosen == "cuda" and (wanted == "cpu" or not available):
        cuda = "use CUDA" if available else f"use CUDA, which this onnxruntime does not have; {INSTALL_CUDA}"
        raise ValueError(f"the folder is {folder}, which the CPU cannot run; export it with {for_cpu}, or {cuda}")
    if chosen == "cuda":
        load_cuda()
        check_device()
    if wanted == "auto":
        other = f"for CUDA export it with {for_cuda}" if available else "this onnxruntime has no CUDA"
        logger.info("running on %s: the folder is %s%s", chosen, folder, f"; {other}" if chosen == "cpu" else "")
    return chosen


def load_cuda() -> None:
    """Loads CUDA's libraries, which pip may have put beside onnxruntime. What it prints of missing ones is not for stdout;
    `missing_library` says it where a session does not start."""
    load = getattr(import_onnxruntime(), "preload_dlls", None)  # only wheels with CUDA have it
    if load is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            load()


def missing_library() -> str | None:
    """What keeps onnxruntime's CUDA library from loading, in the linker's words; None where it loads.

    Only after onnxruntime itself has tried: the library takes hold of its host when it is loaded first.
    """
    folder = Path(import_onnxruntime().__file__).parent / "capi"
    with contextlib.suppress(OSError):
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return first_line(error)
    return None


def open_session(
    file: Path,
    provider: str,
    num_threads: int | None,
    captured: bool = False,
    stream: Stream | None = None,
    weights: Mapping[str, Any] | None = None,
    tuned: bool = True,
) -> Any:
    """A session on exactly the wanted provider; ValueError in one line when it cannot be had.

    captured: runs of fixed shapes become CUDA graphs, which is refused where a node of the graph has no CUDA kernel.
    stream: what it runs on (None: one of its own). weights: initializers on the device, in place of those of the file, by name;
    whoever passes them keeps them. tuned: kernels of products are timed for every number of rows when it is first seen.
    """
    ort = import_onnxruntime()
    most = max(os.cpu_count() or 1, MOST_THREADS)
    if num_threads is not None and not 1 <= num_threads <= most:
        raise ValueError(f"--num-threads: got {num_threads}, expected 1..{most}")
    options = ort.SessionOptions()
    options.log_severity_level = FATAL  # errors are raised
    if provider == "cuda" and tuned:
        for name, setting in CUDA_SETTINGS.items():
            options.add_session_config_entry(name, setting)
    if provider == "cpu":
        set_threads(options, num_threads)
    elif num_threads is not None:
        options.intra_op_num_threads = num_threads
    for name, value in (weights or {}).items():
        options.add_initializer(name, value)
    names: list[Any] = ["CPUExecutionProvider"]
    if provider == "cuda":
        settings = {"enable_cuda_graph": "1" if captured else "0"}
        if stream is not None:
            settings["user_compute_stream"] = stream.address
        names.insert(0, ("CUDAExecutionProvider", settings))
        ort.set_default_logger_severity(FATAL)  # it would log, in many lines, what is raised here in one
    try:
        session = ort.InferenceSession(str(file), options, providers=names, enable_fallback=0)  # it would print and go on
    except Exception as error:  # onnxruntime's own exception types share no base but Exception
        if provider == "cuda":
            check_cuda_library()
        hint = "; --no-cuda-graph decodes without CUDA graphs" if captured and "graph capture" in str(error) else ""
        raise ValueError(f"{file}: onnxruntime cannot load it: {first_line(error)}{hint}") from error
    if provider == "cuda":
        ort.set_default_logger_severity(ERROR)
        if session.get_providers()[0] != "CUDAExecutionProvider":
            check_cuda_library()
            raise ValueError("CUDA cannot start: onnxruntime runs the graph on the CPU and does not say why")
    return session


def check_cuda_library() -> None:
    """ValueError where onnxruntime's CUDA library lacks another one; a folder of any precision then falls to the CPU."""
    if missing := missing_library():
        where = "it comes with the NVIDIA driver" if missing.startswith("libcuda.so") else INSTALL_CUDA
        raise ValueError(f"CUDA cannot start: {missing}; {where}")
