"""`stop_clearly`: ranks that stop together. If one is lost, the others say so and end, also inside a collective.
Called by train/run.py and `mtpd distill-data`.

NCCL waits for a lost rank for ever. Two things end such a wait, both in threads of their own and whichever comes first:
SIGTERM, which mlx.launch sends, and a connection from every rank to rank 0, which breaks when a process is gone. Rank 0 stops
for SIGTERM as for Ctrl-C, with a resume point, unless it is inside a collective that does not end.
"""

import json
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from mtpd_mlx.options import signals
from mtpd_mlx.ranks.world import World

LOST = "another rank was lost"
FINISHED, ENDED = b"f", b"e"  # what a rank says when it leaves: its work is done; it ends early, as all others do
PATIENCE = {b"": 3.0, ENDED: 45.0}  # seconds in which this rank may end by itself; nothing said: the other one is gone
GRACE = 3.0  # seconds in which the main thread of rank 0 hears of SIGTERM, where it is not inside a collective
WAIT = 15.0  # seconds in which the other ranks go on after a SIGTERM, for collectives that rank 0 still needs to save
REACH = 20.0  # seconds for the ranks to connect
KEY_BYTES = 16
logger = logging.getLogger(__name__)


@contextmanager
def stop_clearly(world: World, how_to_continue: str) -> Iterator[None]:
    """While it is open, a rank that cannot go on, because another one is lost or the launcher ends the run, says so and how
    to continue, and leaves. Nothing is watched where there is one process."""
    if world.size == 1:
        yield
        return
    watch = _Watch(world.rank, how_to_continue)
    watch.heed_sigterm()
    said = b""
    try:
        try:
            watch.follow(_connect(world))
        except (ValueError, OSError) as error:  # the launcher still watches
            logger.warning("rank %d: ranks cannot watch each other (%s)", world.rank, error)
        yield
        said = FINISHED
    except (ValueError, KeyboardInterrupt):
        said = ENDED
        raise
    finally:
        watch.close(said)


class _Watch:
    def __init__(self, rank: int, how_to_continue: str):
        self.rank, self.how_to_continue = rank, how_to_continue
        self.over, self.heard, self.lead_gone = threading.Event(), threading.Event(), threading.Event()
        self.peers: dict[int, socket.socket] = {}

    def leave(self, why: str, code: int) -> None:
        logger.error("rank %d %s; %s", self.rank, why, self.how_to_continue)
        os._exit(code)

    def heed_sigterm(self) -> None:
        """The signal wakes a thread: the main one may be inside a collective, where Python handles no signals."""
        reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.old_handler = signal.signal(signal.SIGTERM, self._heard)
        self.old_fd = signal.set_wakeup_fd(self.writer)

        def wait() -> None:
            while received := os.read(reader, 1):
                if received[0] == signal.SIGTERM:
                    self._told()
            os.close(reader)

        threading.Thread(target=wait, daemon=True).start()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """In the main thread. Rank 0 alone has something to save, the others go on until it has ended (`_told`)."""
        if self.rank == 0:
            self.heard.set()
            signals.raise_it(number, frame)

    def _told(self) -> None:
        if self.rank:
            self.lead_gone.wait(WAIT)
        elif self.heard.wait(GRACE) and self.over.wait(PATIENCE[ENDED]):
            return  # the main thread ends by itself
        self.leave(f"was told to stop: {LOST}, or the launcher ended the run", 143)

    def _say(self, what: bytes) -> None:
        for peer in self.peers.values():
            with suppress(OSError):
                peer.sendall(what)

    def follow(self, peers: dict[int, socket.socket]) -> None:
        self.peers = peers
        for rank, peer in peers.items():
            threading.Thread(target=self._follow, args=(rank, peer), daemon=True).start()

    def _follow(self, rank: int, peer: socket.socket) -> None:
        said = b""
        with suppress(OSError):
            said = peer.recv(1)
        if rank == 0:
            self.lead_gone.set()
        if said != FINISHED and not self.over.wait(PATIENCE.get(said, 0.0)):
            self.leave(f"stops: {LOST} (rank {rank})", 1)

    def close(self, said: bytes) -> None:
        self.over.set()
        self._say(said)
        for peer in self.peers.values():
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()
        signal.set_wakeup_fd(self.old_fd)
        signal.signal(signal.SIGTERM, self.old_handler)
        os.close(self.writer)


def _connect(world: World) -> dict[int, socket.socket]:
    """Rank 0's connections by rank; another rank's one, to rank 0. ValueError or OSError where they do not come about."""
    servers: list[socket.socket] = []

    def listen() -> list[Any]:
        servers.append(socket.create_server((_address_of_rank_0(), 0)))
        return [*servers[0].getsockname()[:2], secrets.token_hex(KEY_BYTES // 2)]

    host, port, key = world.from_lead(listen)
    if not world.leads:
        peer = socket.create_connection((host, port), timeout=REACH)
        peer.sendall(f"{key}{world.rank:08}".encode())
        return {0: _stay(peer)}
    peers: dict[int, socket.socket] = {}
    with servers[0] as server:
        server.settimeout(REACH)
        while len(peers) < world.size - 1:
            peer = server.accept()[0]
            peer.settimeout(REACH)
            hello = peer.recv(KEY_BYTES + 8, socket.MSG_WAITALL).decode(errors="replace")
            if hello.startswith(key):
                peers[int(hello[KEY_BYTES:])] = _stay(peer)
    return peers


def _stay(peer: socket.socket) -> socket.socket:
    """Waits for ever, and finds out within half a minute when a whole machine is gone."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # macOS has another name for the first
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


def _address_of_rank_0() -> str:
    """As its launcher knows it: mlx.launch names it for NCCL, for the ring in the hosts' file."""
    if "NCCL_HOST_IP" in os.environ:
        return os.environ["NCCL_HOST_IP"]
    if "MLX_HOSTFILE" in os.environ:
        first = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())[0]
        return (first if isinstance(first, str) else first[0]).rpartition(":")[0]
    return socket.gethostbyname(socket.gethostname())
