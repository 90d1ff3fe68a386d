"""mtpd-onnx chat."""

from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.options.sampling import GraphSampling
from mtpd_mlx.options.text import ChatOptions, check_plain

OPTIONS = (RuntimeOptions, ChatOptions, GraphSampling)


def check(runtime: RuntimeOptions, chat: ChatOptions, sampling: GraphSampling) -> None:
    check_plain(chat.plain, None, show_drafts=chat.show_drafts)


def run(runtime: RuntimeOptions, chat: ChatOptions, sampling: GraphSampling) -> int:
    from mtpd_mlx.text.chat import run_chat
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.runtime.open import open_folder

    backend = open_folder(runtime.folder, plain=chat.plain, sampling=sampling, **runtime.of_folder())
    return run_chat(
        backend,
        Tokenizer.from_folder(runtime.folder),
        chat.max_tokens,
        system_prompt=chat.system_prompt,
        show_drafts=chat.show_drafts,
    )
