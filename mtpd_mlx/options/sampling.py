"""Options of sampling: flags for the fields of Sampling, which holds their defaults. Instances are samplings.
Called by the commands that decode, on both runtimes."""

from dataclasses import dataclass

from mtpd_mlx.options.schema import flag, option, same
from mtpd_mlx.speculative.sampling import Sampling


@dataclass(frozen=True)
class SamplingOptions(Sampling):
    """Names and ranges as in Sampling, which checks them."""

    GROUP = "sampling"

    temp: float = option(Sampling.temp, "temperature; 0 takes the most probable token", metavar="X")
    top_p: float = option(
        Sampling.top_p, "draw from the most probable tokens that together reach this probability; 0: off", metavar="X"
    )
    min_p: float = option(
        Sampling.min_p, "draw only tokens at least this probable, relative to the most probable one; 0: off", metavar="X"
    )
    top_k: int = option(Sampling.top_k, "draw from this many most probable tokens; 0: off", metavar="N")
    repetition_penalty: float = option(
        Sampling.repetition_penalty,
        "divide the logits of recent tokens by this (multiply those below 0); 1: off",
        metavar="X",
    )
    repetition_context_size: int = option(
        Sampling.repetition_context_size, "recent tokens that the penalty looks at", metavar="N"
    )
    xtc_probability: float = option(
        Sampling.xtc_probability,
        "how often XTC leaves out all likely tokens but the least probable of them; 0: never",
        metavar="X",
    )
    xtc_threshold: float = option(Sampling.xtc_threshold, "from which probability on XTC calls a token likely", metavar="X")
    seed: int | None = option(Sampling.seed, "makes sampling repeatable", metavar="N", unset="another text every time")

    def __post_init__(self) -> None:
        """ValueError for an option that would have no effect. (A seed keeps its word: greedy texts are repeatable.)"""
        super().__post_init__()
        for name in ("top_p", "min_p", "top_k", "xtc_probability"):
            if self.temp == 0 and getattr(self, name):
                raise ValueError(f"{flag(name)}: expected a --temp above 0 with it (0 is greedy)")
        if self.xtc_threshold != Sampling.xtc_threshold and self.xtc_probability == 0:
            raise ValueError("--xtc-threshold: expected an --xtc-probability above 0 with it")
        if self.repetition_context_size != Sampling.repetition_context_size and self.repetition_penalty == 1:
            raise ValueError("--repetition-context-size: expected a --repetition-penalty other than 1 with it")


@dataclass(frozen=True)
class GraphSampling(SamplingOptions):
    """Of exported graphs, which have some values built in: mtpd_onnx/runtime/sampling_state.py refuses others."""

    repetition_context_size: int = same(SamplingOptions, "repetition_context_size", hidden=True)
    xtc_probability: float = same(SamplingOptions, "xtc_probability", hidden=True)
    xtc_threshold: float = same(SamplingOptions, "xtc_threshold", hidden=True)


@dataclass(frozen=True)
class JudgedSampling(SamplingOptions):
    """Of mtpd verify: a distribution is judged, the same one every time."""

    temp: float = same(SamplingOptions, "temp", default=0.8)
    seed: int | None = same(SamplingOptions, "seed", default=0)


@dataclass(frozen=True)
class JudgedGraphSampling(GraphSampling):
    """Of mtpd-onnx verify."""

    temp: float = same(JudgedSampling, "temp")
    seed: int | None = same(JudgedSampling, "seed")
