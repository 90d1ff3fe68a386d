"""`run_ranks`: the ranks of one run on this host, started as mlx.launch does, on free ports and without ssh.
Called by tools/bench_scaling.py and the rest of tools/scaling."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtpd_mlx.model.runtime import kernel_cache, mx, on_cuda
from tools.paths import ROOT, python_path

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them; empty where MLX does not compute on CUDA."""
    if not on_cuda():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(mx.device_count(mx.gpu))]


def check(counts: list[int]) -> None:
    """ValueError where there are fewer GPUs than ranks. CPU ranks share the cores."""
    found = gpus()
    if found and max(counts) > len(found):
        raise ValueError(f"--ranks {max(counts)}: expected at most {len(found)}, the GPUs that are visible here")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in held]


def first_of_free_ports(count: int) -> int:
    """The first of `count` that follow each other."""
    while True:
        first = free_ports(1)[0]
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


def share_kernels(count: int) -> None:
    """Gives every rank the CUDA kernels that rank 0 compiled before. While no rank runs, since files are written in place."""
    first = Path(kernel_cache(0))
    if gpus() and first.is_dir():
        for rank in range(1, count):
            shutil.copytree(first, kernel_cache(rank), dirs_exist_ok=True)


def environments(count: int, folder: Path) -> list[dict[str, str]]:
    """What each rank needs to know: one GPU and NCCL, or a share of the cores and the ring. Alone it needs no backend."""
    found = gpus()
    common = dict(os.environ) | python_path()
    ranks = [common | {"MLX_RANK": str(r)} if count > 1 else dict(common) for r in range(count)]
    if found:
        nccl = {"NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(free_ports(1)[0]), "MLX_WORLD_SIZE": str(count)}
        return [r | (nccl if count > 1 else {}) | {"CUDA_VISIBLE_DEVICES": found[i]} for i, r in enumerate(ranks)]
    hosts = folder / f"hosts-{count}-{time.monotonic_ns()}.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
    return [r | ({"MLX_HOSTFILE": str(hosts)} if count > 1 else {}) | dict.fromkeys(THREADS, "1") for r in ranks]


@contextlib.contextmanager
def started(count: int, command: list[str], folder: Path, log: Path | None = None, **more: str) -> Iterator[list]:
    """The processes of `count` ranks, ended on leaving. Their output goes to stderr, or to `log`."""
    processes: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else 2
        share_kernels(count)
        try:
            for env in environments(count, folder):
                processes.append(subprocess.Popen(command, env=env | more, cwd=ROOT, stdout=output, stderr=output))
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


def run_ranks(
    count: int,
    command: list[str],
    folder: Path,
    limit: float,
    log: Path | None = None,
    accept: tuple[int, ...] = (0,),
    **more: str,
) -> None:
    """Runs them to their end; RuntimeError when one ends with another exit code or after `limit` seconds."""
    deadline = time.monotonic() + limit
    with started(count, command, folder, log, **more) as processes:
        while time.monotonic() < deadline:
            codes = [p.poll() for p in processes]
            for rank, code in enumerate(codes):
                if code is not None and code not in accept:
                    said = log.read_text()[-1000:] if log else "(see above)"
                    raise RuntimeError(f"rank {rank} of {count} ended with code {code}: {' '.join(command)}: {said}")
            if None not in codes:
                return
            time.sleep(0.02)
    raise RuntimeError(f"{count} ranks had not ended after {limit:.0f} s: {' '.join(command)}")


def mlx_launch(count: int, command: list[str]) -> list[str]:
    """The command line of mlx.launch for this host, on free ports; found also where its script is not on the PATH."""
    script = shutil.which("mlx.launch", path=str(Path(sys.executable).parent))
    start = [script] if script else [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]
    port = str(first_of_free_ports(count))
    where = ["--backend", "nccl", "--nccl-port", port] if gpus() else ["--backend", "ring", "--starting-port", port]
    return [*start, "-n", str(count), *where, *command]


def run_worker(task: str, spec: Any, count: int, limit: float, **more: str) -> list[dict[str, Any]]:
    """What each rank of tools.scaling.worker found, by rank. `spec`: its Spec."""
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "spec.json"
    file.write_text(json.dumps(asdict(spec)))
    run_ranks(count, [sys.executable, "-m", "tools.scaling.worker", task, str(file)], folder, limit, **more)
    return [json.loads((folder / f"rank-{r}.json").read_text()) for r in range(count)]
