"""`ring`: two ranks of one program on this machine, as mlx.launch starts them.
Called by tests of ranks."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@contextmanager
def ring(folder: Path, arguments: list[str], **streams: Any) -> Iterator[list[subprocess.Popen]]:
    """`python ARGUMENTS` twice, on free ports; what runs at the end is killed. streams: of subprocess.Popen."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        hosts = [[f"127.0.0.1:{s.getsockname()[1]}"] for s in held]
    hostfile = folder / "hosts.json"
    hostfile.write_text(json.dumps(hosts))
    env = dict(os.environ) | {"MLX_HOSTFILE": str(hostfile), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    ranks = [subprocess.Popen(command, env=env | {"MLX_RANK": str(r)}, **streams) for r in range(2)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
