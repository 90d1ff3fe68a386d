"""`check_precision`, `choose_activations`: types of weights and activations, and the provider that runs them.
Called by export, commands and runtime/."""

PRECISIONS = ("fp32", "fp16", "bf16", "int4", "int8")
# What each kind of activations runs on. int8: float32, but rounded to 8 bits inside every product with integer weights.
PROVIDERS = {"fp32": "cpu", "int8": "cpu", "fp16": "cuda", "bf16": "cuda"}
ACTIVATIONS = tuple(PROVIDERS)
ACTIVATION_BYTES = {"fp32": 4, "int8": 4, "fp16": 2, "bf16": 2}
WEIGHT_BITS = {"int4": 4, "int8": 8}
INTEGER_ACTIVATIONS = "int8"  # of integer weights where none are asked for: the fastest on CPUs
DRAFT_HEAD_BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)  # weights that share a scale


def choose_activations(precision: str, wanted: str | None) -> str:
    """What is computed in: for fp32, fp16 and bf16 the same; for int4 and int8 what is wanted, else int8."""
    if precision not in PRECISIONS:
        raise ValueError(f"--precision: got {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if wanted is not None and wanted not in ACTIVATIONS:
        raise ValueError(f"--activations: got {wanted!r}, expected one of {', '.join(ACTIVATIONS)}")
    if precision in WEIGHT_BITS:
        return wanted or INTEGER_ACTIVATIONS
    if wanted not in (None, precision):
        raise ValueError(f"--activations {wanted}: needs --precision int4 or int8; with {precision} they are {precision}")
    return precision


def check_precision(precision: str, activations: str) -> None:
    """ValueError where a folder's two entries do not go together."""
    for name, value, known in (("precision", precision, PRECISIONS), ("activations", activations, ACTIVATIONS)):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
    if precision not in WEIGHT_BITS and activations != precision:
        raise ValueError(f"activations: got {activations!r}, expected {precision!r}")


def describe(precision: str, activations: str) -> str:
    """ "fp16", or "int4 (activations fp16)"."""
    return precision if precision not in WEIGHT_BITS else f"{precision} (activations {activations})"


def export_options(precision: str, provider: str) -> str:
    """The options that export a folder of this precision for another provider."""
    if precision not in WEIGHT_BITS:
        return f"--precision {'fp32' if provider == 'cpu' else 'fp16'}"
    return f"--precision {precision} --activations {INTEGER_ACTIVATIONS if provider == 'cpu' else 'fp16'}"
