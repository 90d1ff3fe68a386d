"""`mtpd inspect`: kind, size and needs of a folder or hub id. Needs no MLX and reads no weights.
Called by mtpd_mlx/cli.py and commands/info.py."""

import json

from mtpd_mlx.inspection.folder_view import View
from mtpd_mlx.options.hub import InspectOptions, MemoryPlan

OPTIONS = (InspectOptions, MemoryPlan)
EXAMPLES = ("mtpd inspect Qwen/Qwen3-0.6B", "mtpd inspect heads")


def run(wanted: InspectOptions, plan: MemoryPlan) -> int:
    from mtpd_mlx.inspection.describe import describe
    from mtpd_mlx.inspection.render import render

    view = view_of(wanted.name, wanted.revision)
    found = describe(view, plan)
    if found["kind"] == "model" and found["supported"] and (why := tokenizer_fault(view, found["dims"]["vocab_size"])):
        found |= {"supported": False, "why_not": why}
    print(json.dumps(found, indent=2) if wanted.json else render(found))
    return 0


def tokenizer_fault(view: View, vocabulary: int) -> str | None:
    """Why the tokenizer of a local folder cannot be used with the model beside it. None: it can, or there is none."""
    from mtpd_mlx.inspection.folder_view import LocalView
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_mlx.text.tokenizer_files import BACKEND

    if not isinstance(view, LocalView) or BACKEND not in view.files():
        return None
    try:
        Tokenizer.from_folder(view.folder, vocabulary)
    except ValueError as error:
        return str(error)
    return None


def view_of(name: str, revision: str | None) -> View:
    from mtpd_mlx.files.publish import recover
    from mtpd_mlx.hub.messages import HubError
    from mtpd_mlx.hub.pull import local_folder, no_such_folder
    from mtpd_mlx.hub.remote import look
    from mtpd_mlx.inspection.folder_view import LocalView

    if (folder := local_folder(name, revision)) is not None:
        recover(folder)
        return LocalView(folder)
    try:
        return look(name, revision)
    except HubError as error:
        raise no_such_folder(error) from None
