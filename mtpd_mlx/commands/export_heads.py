"""`mtpd export-heads`: heads in a layout that servers read. Needs no MLX.
Called by mtpd_mlx/cli.py."""

import json
import shlex

from mtpd_mlx.checkpoints.shipped.layouts import HEADS_FOLDER
from mtpd_mlx.checkpoints.shipped.vllm import VLLM
from mtpd_mlx.options.export import ExportHeadsOptions

OPTIONS = (ExportHeadsOptions,)
EXAMPLES = ("mtpd export-heads heads --out served",)


def run(export: ExportHeadsOptions) -> int:
    from mtpd_mlx.checkpoints.format import read_config
    from mtpd_mlx.checkpoints.shipped.write import export_heads
    from mtpd_mlx.hub.pull import resolve_folder, resolve_model

    checkpoint = resolve_folder(export.checkpoint)
    named = export.model or read_config(checkpoint).base.locate(checkpoint)
    base = resolve_model(named)
    written = export_heads(
        checkpoint,
        base,
        export.out,
        export.format,
        named=named,
        with_base=export.with_base,
        link=export.link,
        copy_ends=export.copy_ends,
        allow_mismatch=export.allow_base_mismatch,
    )
    replaced = f", in place of the {written.replaced} that the base ships" if written.replaced else ""
    what = "model with MTP heads" if export.with_base else "MTP heads"
    print(f"{export.out}: {what} ({export.format}), {written.bytes / 1e6:.1f} MB of them{replaced}")
    if export.format == VLLM:
        heads = export.out / HEADS_FOLDER if export.with_base else export.out
        speculative = json.dumps({"method": "mtp", "model": str(heads), "num_speculative_tokens": written.heads})
        served = str(export.out) if export.with_base else named
        print(f"vllm serve {shlex.quote(served)} --speculative-config {shlex.quote(speculative)}")
    if written.bits is not None:
        print(f"the heads' {written.bits}-bit integers are written in floating point: these layouts have no names for them")
    if written.draft_vocab is not None:
        print(f"the heads' draft vocabulary of {written.draft_vocab} tokens has no place in this layout: it is left out")
    return 0
