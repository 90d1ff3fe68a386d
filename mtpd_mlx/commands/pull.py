"""`mtpd pull`: a hub repository as a local folder. Needs no MLX.
Called by mtpd_mlx/cli.py."""

from mtpd_mlx.options.hub import PullOptions

OPTIONS = (PullOptions,)
EXAMPLES = ("mtpd pull me/heads",)


def run(wanted: PullOptions) -> int:
    from mtpd_mlx.hub.pull import pull
    from mtpd_mlx.inspection.describe import describe
    from mtpd_mlx.inspection.folder_view import LocalView
    from mtpd_mlx.inspection.render import render

    folder = pull(wanted.name, wanted.revision, wanted.out)
    print(render(describe(LocalView(folder))))
    return 0
