"""The graphs of an exported folder, by its layout. Export writes them, runtime/open.py opens them."""

BATCHED = "batched_round.onnx"
FUSED = {  # by (sampled, plain)
    (False, False): "round.onnx",
    (False, True): "plain.onnx",
    (True, False): "sampled_round.onnx",
    (True, True): "sampled_plain.onnx",
}
DECODER = {False: "decoder.onnx", True: "sampled_decoder.onnx"}  # by sampled; of folders for CPUs
MAIN, HEADS = "main.onnx", "mtp_heads.onnx"
LAYOUTS = {"fused": (*FUSED.values(), BATCHED, *DECODER.values()), "split": (MAIN, HEADS)}


def graphs_of(layout: str, num_heads: int, on_cpu: bool) -> tuple[str, ...]:
    """The graphs of a folder. `on_cpu`: it runs on CPUs, which take any number of drafts. Without heads there are no rounds."""
    left_out = set() if on_cpu else set(DECODER.values())
    if not num_heads:
        left_out |= {FUSED[False, False], FUSED[True, False], BATCHED, HEADS}
    return tuple(name for name in LAYOUTS[layout] if name not in left_out)
