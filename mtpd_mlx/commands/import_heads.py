"""`mtpd import-heads`: a heads checkpoint made of a model that ships heads. Needs no MLX.
Called by mtpd_mlx/cli.py."""

from mtpd_mlx.options.hub import ImportHeadsOptions

OPTIONS = (ImportHeadsOptions,)
EXAMPLES = ("mtpd import-heads XiaomiMiMo/MiMo-7B-RL --out heads",)


def run(wanted: ImportHeadsOptions) -> int:
    from mtpd_mlx.checkpoints.shipped.read import base_of, import_heads
    from mtpd_mlx.files.hub_ids import is_hub_id, split_revision
    from mtpd_mlx.hub.pull import resolve_model

    model, named = resolve_model(wanted.model, wanted.revision), wanted.model
    if wanted.revision and is_hub_id(named):
        named = "@".join(part for part in split_revision(named, wanted.revision) if part)
    base = None
    if (reference := base_of(model)) is not None or wanted.base is not None:
        named = wanted.base or (reference.locate(model) if reference else named)
        base = resolve_model(named)
    found = import_heads(model, wanted.out, named, wanted.overwrite, base)
    print(f"{wanted.out}: {found['heads']} heads imported ({found['format']})")
    return 0
