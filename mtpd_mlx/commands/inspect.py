"""mtpd inspect: needs no MLX and reads no weights."""

import json

from mtpd_mlx.inspection.folder_view import View
from mtpd_mlx.options.hub import InspectOptions, MemoryPlan

OPTIONS = (InspectOptions, MemoryPlan)


def run(wanted: InspectOptions, plan: MemoryPlan) -> int:
    from mtpd_mlx.inspection.describe import describe
    from mtpd_mlx.inspection.render import render

    found = describe(view_of(wanted.name, wanted.revision), plan)
    print(json.dumps(found, indent=2) if wanted.json else render(found))
    return 0


def view_of(name: str, revision: str | None) -> View:
    from mtpd_mlx.hub.messages import HubError
    from mtpd_mlx.hub.pull import local_folder, no_such_folder
    from mtpd_mlx.hub.remote import look
    from mtpd_mlx.inspection.folder_view import LocalView

    if (folder := local_folder(name)) is not None:
        return LocalView(folder)
    try:
        return look(name, revision)
    except HubError as error:
        raise no_such_folder(error) from None
