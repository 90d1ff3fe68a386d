"""`Plan`: how rounds run on this machine (caches, compilation).
Called by decoding/open.py and the decoders."""

from dataclasses import dataclass
from itertools import product

from mtpd_mlx.decoding.fixed_cache import WRITES
from mtpd_mlx.decoding.row_products import PRODUCTS

CACHES = ("growing", "fixed")


@dataclass(frozen=True)
class Plan:
    """cache: mlx-lm's own (growing), or fixed buffers; compiled, write (caches.WRITES) and products (products.PRODUCTS) are
    those of fixed buffers."""

    cache: str = "growing"
    compiled: bool = False
    write: str = "slice"
    products: str = "matrix"

    def __post_init__(self) -> None:
        for name, known in (("cache", CACHES), ("write", WRITES), ("products", PRODUCTS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"plan: {name}: got {value!r}, expected one of {', '.join(known)}")

    def __str__(self) -> str:
        if self.cache == "growing":
            return "growing"
        options = (("compiled", self.compiled), ("scatter", self.write == "scatter"), ("rows", self.products == "rows"))
        return "fixed" + "".join(f"+{name}" for name, on in options if on)

    @staticmethod
    def parse(text: str) -> "Plan":
        """The inverse of str. ValueError for anything else."""
        for plan in PLANS:
            if str(plan) == text:
                return plan
        raise ValueError(f"--plan: got {text!r}, expected auto or one of {', '.join(map(str, PLANS))}")


PLANS = (Plan(), *(Plan("fixed", *options) for options in product((False, True), WRITES, PRODUCTS)))
