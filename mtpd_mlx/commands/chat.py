"""`mtpd chat`: a conversation in the terminal.
Called by mtpd_mlx/cli.py."""

from mtpd_mlx.commands.loading import open_from
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.sampling import SamplingOptions
from mtpd_mlx.options.text import TunedChatOptions, check_cache_file, check_plain, stops_of

OPTIONS = (RunnableOptions, TunedChatOptions, DecodingConfig, SamplingOptions)
EXAMPLES = ("mtpd chat heads --show-drafts",)


def check(place: RunnableOptions, chat: TunedChatOptions, decoding: DecodingConfig, sampling: SamplingOptions) -> None:
    check_plain(chat.plain, chat.num_draft_tokens, decoding.exact, chat.show_drafts)
    check_cache_file(chat, decoding)


def run(place: RunnableOptions, chat: TunedChatOptions, decoding: DecodingConfig, sampling: SamplingOptions) -> int:
    from mtpd_mlx.decoding.prompt_cache import load_cache, save_cache
    from mtpd_mlx.text.chat import run_chat
    from mtpd_mlx.text.tokenizer import Tokenizer

    drafts = chat.num_draft_tokens
    backend, base = open_from(place, decoding, sampling, plain=chat.plain, num_draft_tokens=drafts, lookup=chat.lookup)
    tokenizer, file = Tokenizer.from_folder(base.path), chat.prompt_cache_file
    cached = load_cache(backend, file) if file is not None and file.is_file() else []
    status = run_chat(
        backend,
        tokenizer,
        chat.max_tokens,
        system_prompt=chat.system_prompt,
        show_drafts=chat.show_drafts,
        cached=cached,
        stop=stops_of(chat),
    )
    if file is not None and backend.length:
        save_cache(backend, file)
    return status
