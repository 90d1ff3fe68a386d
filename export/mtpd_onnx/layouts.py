"""The graphs of an exported folder, by its layout. Export writes them, runtime/open.py opens them."""

BATCHED = "batched_round.onnx"
FUSED = {  # by (sampled, plain)
    (False, False): "round.onnx",
    (False, True): "plain.onnx",
    (True, False): "sampled_round.onnx",
    (True, True): "sampled_plain.onnx",
}
MAIN, HEADS = "main.onnx", "mtp_heads.onnx"
LAYOUTS = {"fused": (*FUSED.values(), BATCHED), "split": (MAIN, HEADS)}
