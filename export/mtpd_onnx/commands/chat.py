"""`mtpd-onnx chat`: a conversation in the terminal.
Called by mtpd_onnx/cli.py."""

from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.options.sampling import GraphSampling
from mtpd_mlx.options.text import GraphChatOptions, check_plain, stops_of

OPTIONS = (RuntimeOptions, GraphChatOptions, GraphSampling)
EXAMPLES = ("mtpd-onnx chat onnx --show-drafts",)


def check(runtime: RuntimeOptions, chat: GraphChatOptions, sampling: GraphSampling) -> None:
    check_plain(chat.plain, chat.num_draft_tokens, show_drafts=chat.show_drafts)


def run(runtime: RuntimeOptions, chat: GraphChatOptions, sampling: GraphSampling) -> int:
    from mtpd_mlx.text.chat import run_chat
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.runtime.open import open_folder

    backend = open_folder(
        runtime.folder,
        plain=chat.plain or chat.num_draft_tokens == 0,
        num_draft_tokens=chat.num_draft_tokens or None,
        choose=True,
        lookup=chat.lookup,
        sampling=sampling,
        **runtime.of_folder(),
    )
    return run_chat(
        backend,
        Tokenizer.from_folder(runtime.folder),
        chat.max_tokens,
        system_prompt=chat.system_prompt,
        show_drafts=chat.show_drafts,
        stop=stops_of(chat),
    )
