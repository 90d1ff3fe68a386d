"""`graphs_of`: the graphs of an exported folder, by its layout.
Called by export/export.py, which writes them, and runtime/, which opens them."""

BATCH = "batch.onnx"
FUSED = {  # by (sampled, plain)
    (False, False): "round.onnx",
    (False, True): "plain.onnx",
    (True, False): "sampled_round.onnx",
    (True, True): "sampled_plain.onnx",
}
DECODER = {False: "decoder.onnx", True: "sampled_decoder.onnx"}  # by sampled; of folders for CPUs
MAIN, HEADS = "main.onnx", "mtp_heads.onnx"
LAYOUTS = {"fused": (*FUSED.values(), BATCH), "split": (MAIN, HEADS)}
DRAFT_COUNTS = (1, 2, 4, 8, 16)  # numbers of heads that rounds on a device can have, beside all of them


def draft_counts(num_heads: int) -> tuple[int, ...]:
    """The numbers of heads that draft in the rounds of a folder for CUDA, ascending."""
    return (*(n for n in DRAFT_COUNTS if n < num_heads), *([num_heads] if num_heads else []))


def device_round(count: int, sampled: bool) -> str:
    """The graph of rounds of so many heads on a device; 0: of given drafts, steps and prompts."""
    return f"{'sampled_' * sampled}{f'heads_{count}' if count else 'given'}.onnx"


def graphs_of(layout: str, num_heads: int, rounds: str | None, batches: bool = True) -> tuple[str, ...]:
    """The graphs of a folder. `rounds`: the provider ("cpu", "cuda") for which it has rounds of any number of drafts; None:
    neither. `batches`: of texts side by side. Without heads there are no rounds of fixed size."""
    names = [name for name in LAYOUTS[layout] if batches or name != BATCH]
    if layout == "fused" and rounds == "cpu":
        names += DECODER.values()
    if layout == "fused" and rounds == "cuda":
        names += [device_round(count, sampled) for count in (0, *draft_counts(num_heads)) for sampled in (False, True)]
    left_out = set() if num_heads else {FUSED[False, False], FUSED[True, False], HEADS}
    return tuple(name for name in names if name not in left_out)
