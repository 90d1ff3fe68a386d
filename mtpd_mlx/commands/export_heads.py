"""mtpd export-heads: needs no MLX."""

from mtpd_mlx.options.export import ExportHeadsOptions

OPTIONS = (ExportHeadsOptions,)


def run(export: ExportHeadsOptions) -> int:
    from mtpd_mlx.checkpoints.format import read_config
    from mtpd_mlx.checkpoints.shipped.write import export_heads
    from mtpd_mlx.hub.pull import resolve_folder, resolve_model

    checkpoint = resolve_folder(export.checkpoint)
    base = resolve_model(export.model or read_config(checkpoint).base.locate(checkpoint))
    written = export_heads(
        checkpoint,
        base,
        export.out,
        export.format,
        link=export.link,
        copy_ends=export.copy_ends,
        allow_mismatch=export.allow_base_mismatch,
    )
    replaced = f", in place of the {written.replaced} that the base ships" if written.replaced else ""
    print(f"{export.out}: model with MTP heads ({export.format}), {written.bytes / 1e6:.1f} MB of them{replaced}")
    if written.draft_vocab is not None:
        print(f"the heads' draft vocabulary of {written.draft_vocab} tokens has no place in this layout: it is left out")
    return 0
