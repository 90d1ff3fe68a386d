"""mtpd generate."""

from mtpd_mlx.commands.loading import open_from
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.sampling import SamplingOptions
from mtpd_mlx.options.text import TunedGenerateOptions, check_plain

OPTIONS = (RunnableOptions, TunedGenerateOptions, DecodingConfig, SamplingOptions)
EXAMPLES = (
    'mtpd generate heads --prompt "Write a haiku about rain."',
    'mtpd generate heads --prompt "Write a haiku about rain." --plain',
)


def check(place: RunnableOptions, options: TunedGenerateOptions, decoding: DecodingConfig, sampling: SamplingOptions) -> None:
    check_plain(options.plain, options.num_draft_tokens, decoding.exact)


def run(place: RunnableOptions, options: TunedGenerateOptions, decoding: DecodingConfig, sampling: SamplingOptions) -> int:
    from mtpd_mlx.text.generate import run_generate
    from mtpd_mlx.text.tokenizer import Tokenizer

    drafts = options.num_draft_tokens
    backend, base = open_from(place, decoding, sampling, plain=options.plain, num_draft_tokens=drafts, lookup=options.lookup)
    return run_generate(backend, Tokenizer.from_folder(base.path), options)
