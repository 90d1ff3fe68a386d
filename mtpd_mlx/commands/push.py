"""`mtpd push`: heads or an exported folder on the hub, with a model card. Needs no MLX.
Called by mtpd_mlx/cli.py."""

from mtpd_mlx.options.hub import PushOptions

OPTIONS = (PushOptions,)
EXAMPLES = ("mtpd push heads me/heads",)


def run(wanted: PushOptions) -> int:
    from mtpd_mlx.hub.push import CARD, prepare, push

    files = prepare(wanted.folder, wanted.repository, wanted.base_id, wanted.license)
    if wanted.dry_run:
        shown = files[CARD]
        assert isinstance(shown, bytes)
        print(shown.decode(), end="")
        print("files: " + ", ".join(files))
        return 0
    address = push(files, wanted.repository, wanted.private, wanted.overwrite)
    print(f"{len(files)} files -> {address}")
    return 0
