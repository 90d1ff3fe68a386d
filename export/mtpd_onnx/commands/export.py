"""`mtpd-onnx export`: a checkpoint exported to a folder. Only a run of it needs onnx and onnxscript.
Called by mtpd_onnx/cli.py and mtpd_mlx/commands/export.py."""

from collections.abc import Iterator
from typing import Any

from mtpd_mlx.options.export import ExportOptions, GraphPlaceOptions

OPTIONS = (GraphPlaceOptions, ExportOptions)
EXAMPLES = ("mtpd-onnx export heads --out onnx",)


def run(place: GraphPlaceOptions, options: ExportOptions) -> int:
    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_onnx.precision import describe

    try:
        from mtpd_onnx.export.export import export_checkpoint
    except ModuleNotFoundError as error:
        raise ImportError(f'{error.name} is not installed; install with: pip install -e ".[export]"') from error
    manifest = export_checkpoint(resolve_folder(place.checkpoint), place.out, options)
    size = sum(entry["bytes"] for entry in manifest.files.values())
    print(
        f"{place.out}: {manifest.layout} {describe(manifest.precision, manifest.activations)}, "
        f"{manifest.num_heads} draft tokens, {manifest.capacity} positions, {size / 1e6:.1f} MB"
    )
    for line in weights_lines(manifest.record["weights"]):
        print(line)
    return 0


def weights_lines(weights: dict[str, Any]) -> Iterator[str]:
    """How the matrices of base and heads were stored, and the largest difference of a weight from its checkpoint: absolute, and
    in integers as a share of the largest weight of its group."""
    for name, account in weights.items():
        if not isinstance(account, dict) or not any(account.get(kind) for kind in ("kept", "rounded", "floating")):
            continue
        kinds = {
            "kept": "with MLX's integers",
            "rounded": f"rounded here in groups of {' or '.join(map(str, account['group_sizes']))}",
            "floating": "in floating point",
        }
        counts = ", ".join(f"{account[kind]} {words}" for kind, words in kinds.items() if account[kind])
        where = f" (absolute, in {account['largest_error_in']})" if account["largest_error"] else ""
        if held := weights["in_groups"].get(name):
            where += f", {100 * held['largest_share']:.3g}% of its group's largest weight at most (in {held['in']})"
        yield f"{name.replace('_', ' ')} matrices: {counts}; largest weight error {account['largest_error']:.3g}{where}"
