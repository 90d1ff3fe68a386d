"""Options of decoding with MLX, with every default.
Called by the commands that decode, and by api.py."""

from dataclasses import dataclass, replace

from mtpd_mlx.options.schema import flag, option


@dataclass(frozen=True)
class DecodingConfig:
    plan: str = option(
        "auto",
        "how rounds run: auto (on GPUs measured at load, or as mtpd tune stored), growing, or fixed with any of +compiled, "
        "+scatter, +rows in this order",
    )
    exact: bool = option(False, "verify with the kernels of single-token passes: bit for bit plain decoding; slower")
    kv_bits: int | None = option(None, "quantise the base's KV cache to this many bits (default: not quantised)")
    kv_group_size: int = option(64, "group size of a quantised KV cache")
    quantized_kv_start: int = option(5000, "quantise the KV cache from this position on")

    sliding_caches: str = option(
        "auto",
        "what layers with sliding windows cache: window (their window and 96 positions more), whole (the whole text), or auto: "
        "window; whole in a server, which takes texts up anywhere, and with --kv-bits",
        ("auto", "window", "whole"),
    )

    def __post_init__(self) -> None:
        if self.sliding_caches == "window" and self.kv_bits is not None:
            raise ValueError("--sliding-caches: got window with --kv-bits, expected whole: windows are not quantised")
        if self.kv_bits is not None and self.kv_bits not in (2, 3, 4, 6, 8):
            raise ValueError(f"--kv-bits: got {self.kv_bits}, expected 2, 3, 4, 6 or 8")
        if self.kv_group_size not in (32, 64, 128):
            raise ValueError(f"--kv-group-size: got {self.kv_group_size}, expected 32, 64 or 128")
        if self.quantized_kv_start < 0:
            raise ValueError(f"--quantized-kv-start: got {self.quantized_kv_start}, expected at least 0")

        for name in ("kv_group_size", "quantized_kv_start"):
            if self.kv_bits is None and getattr(self, name) != getattr(DecodingConfig, name):
                raise ValueError(f"{flag(name)}: expected --kv-bits with it")

    @property
    def windows(self) -> bool:
        """Sliding layers keep their window alone."""
        return self.sliding_caches == "window" or (self.sliding_caches == "auto" and self.kv_bits is None)

    def of_server(self) -> "DecodingConfig":
        """Where texts are taken up in the middle and decoded side by side. ValueError for windows, which cannot be."""
        if self.sliding_caches == "window":
            raise ValueError("--sliding-caches: got window, expected whole: a server takes texts up anywhere")
        return replace(self, sliding_caches="whole")

    def of_plain(self) -> "DecodingConfig":
        """For plain decoding beside rounds: it chooses its own plan, whatever is asked for rounds."""
        return replace(self, plan="auto")
