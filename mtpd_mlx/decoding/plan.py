"""How rounds are run on this machine: a choice of caches and compilation, made by measurement."""

from dataclasses import dataclass

from mtpd_mlx.decoding.caches import WRITES

CACHES = ("growing", "fixed")


@dataclass(frozen=True)
class Plan:
    """cache: mlx-lm's own (growing), or fixed buffers; compiled and write (caches.WRITES) are those of fixed buffers."""

    cache: str = "growing"
    compiled: bool = False
    write: str = "slice"

    def __post_init__(self) -> None:
        for name, value, known in (("cache", self.cache, CACHES), ("write", self.write, WRITES)):
            if value not in known:
                raise ValueError(f"plan: {name}: got {value!r}, expected one of {', '.join(known)}")

    def __str__(self) -> str:
        if self.cache == "growing":
            return "growing"
        return "fixed" + ("+compiled" if self.compiled else "") + ("+scatter" if self.write == "scatter" else "")

    @staticmethod
    def parse(text: str) -> "Plan":
        """The inverse of str. ValueError for anything else."""
        for plan in PLANS:
            if str(plan) == text:
                return plan
        raise ValueError(f"plan: got {text!r}, expected one of {', '.join(map(str, PLANS))}")


PLANS = (
    Plan(),
    Plan("fixed"),
    Plan("fixed", compiled=True),
    Plan("fixed", write="scatter"),
    Plan("fixed", compiled=True, write="scatter"),
)
