"""`Metrics`: the figures of /metrics (Prometheus), and the log line of each request.
Called by serving/app.py."""

import logging
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mtpd_mlx.serving.engine import Engine, Finished
from mtpd_mlx.serving.prefix_cache import PrefixCache

logger = logging.getLogger(__name__)
TEXTS = (1, 2, 4, 8, 16, 32, 64)
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


PREFIXES: tuple[tuple[str, str, Callable[[PrefixCache], int]], ...] = (
    ("bytes", "memory of texts that have ended and lost their rows", lambda p: p.nbytes),
    ("texts", "of these, their number", len),
    ("hits", "requests that went on with one of them", lambda p: p.hits),
    ("misses", "requests that found nothing cached at all", lambda p: p.misses),
    ("tokens", "tokens of prompts that came from there", lambda p: p.saved_tokens),
)


def _of_prefixes(engine: Engine, read: Callable[[PrefixCache], int]) -> int:
    return 0 if engine.prefixes is None else read(engine.prefixes)


class Metrics:
    """Counters and gauges of the server in a registry of their own."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        kept = self.registry
        self.requests = Counter("mtpd_requests", "requests answered, by path and status", ["path", "status"], registry=kept)
        self.prompt_tokens = Counter("mtpd_prompt_tokens", "tokens of prompts", registry=kept)
        self.cached_tokens = Counter("mtpd_cached_tokens", "tokens of prompts that were cached already", registry=kept)
        self.tokens = Counter("mtpd_tokens", "tokens written", registry=kept)
        self.decode_seconds = Counter("mtpd_decode_seconds", "seconds of decoding after the first token", registry=kept)
        self.rounds = Counter("mtpd_rounds", "passes of the main model, by what they verified", ["verified"], registry=kept)
        self.drafted = Counter("mtpd_drafts", "drafts of the heads that were verified, by depth", ["depth"], registry=kept)
        self.accepted = Counter("mtpd_drafts_accepted", "of those, accepted", ["depth"], registry=kept)
        self.first = Histogram("mtpd_seconds_to_first_token", "from the request on", buckets=SECONDS, registry=kept)
        self.whole = Histogram("mtpd_request_seconds", "from the request to the last token", buckets=SECONDS, registry=kept)
        waiting = Gauge("mtpd_requests_waiting", "requests in the queue", registry=kept)
        waiting.set_function(lambda: engine.waiting)
        running = Gauge("mtpd_requests_running", "requests that are prefilled or decoded", registry=kept)
        running.set_function(lambda: engine.running)
        resting = Gauge("mtpd_texts_resting", "texts that have ended and are cached", registry=kept)
        resting.set_function(lambda: engine.resting)
        faults = Gauge("mtpd_cache_faults", "1 where the caches were found wrong with nothing under way", registry=kept)
        faults.set_function(lambda: engine.integrity != "ok")
        self.together = Histogram("mtpd_batch_texts", "texts decoded in a round", buckets=TEXTS, registry=kept)
        named = "rounds of several texts, by drafts of the heads chosen for each"
        self.chosen = Counter("mtpd_batch_rounds", named, ["drafts"], registry=kept)
        for name, about, read in PREFIXES:
            each = Gauge(f"mtpd_prefix_cache_{name}", about, registry=kept)
            each.set_function(partial(_of_prefixes, engine, read))
        engine.see_round = self.round_of

    def round_of(self, texts: int, drafts: int | None) -> None:
        """Called in the engine's thread."""
        self.together.observe(texts)
        if drafts is not None:
            self.chosen.labels(str(drafts)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def answered(self, path: str, status: int) -> None:
        self.requests.labels(path, str(status)).inc()

    def finished(self, path: str, done: Finished) -> None:
        stats = done.stats
        self.prompt_tokens.inc(done.prompt_tokens)
        self.cached_tokens.inc(done.cached_tokens)
        self.tokens.inc(stats.tokens)
        self.decode_seconds.inc(stats.decode_seconds)
        self.first.observe(done.seconds_to_first)
        self.whole.observe(done.seconds)
        for verified, (rounds, _) in stats.chosen.items():
            self.rounds.labels(verified).inc(rounds)
        for accepted, proposed in zip(stats.accepted, stats.proposed, strict=True):
            for depth in range(1, proposed + 1):
                self.drafted.labels(str(depth)).inc()
                self.accepted.labels(str(depth)).inc(depth <= accepted)
        logger.info(
            "%s: %d prompt tokens (%d cached), %d tokens, tau %.2f, %.1f tokens/s, first after %.2f s, %s",
            path, done.prompt_tokens, done.cached_tokens, stats.tokens, stats.tau, stats.tokens_per_second,
            done.seconds_to_first, done.reason,
        )  # fmt: skip
