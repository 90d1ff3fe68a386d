"""`mtpd generate`: texts of prompts.
Called by mtpd_mlx/cli.py."""

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
    if options.json_schema is not None:
        return run_bound(place, options, decoding, sampling)
    backend, base = open_from(place, decoding, sampling, plain=options.plain, num_draft_tokens=drafts, lookup=options.lookup)
    return run_generate(backend, Tokenizer.from_folder(base.path), options)


def run_bound(
    place: RunnableOptions, options: TunedGenerateOptions, decoding: DecodingConfig, sampling: SamplingOptions
) -> int:
    """Texts that fit --json-schema."""
    from mtpd_mlx.commands.loading import load_model, open_bound, xtc_special_tokens
    from mtpd_mlx.text.generate import run_generate
    from mtpd_mlx.text.grammar import Grammars, schema_of_file
    from mtpd_mlx.text.tokenizer import Tokenizer

    assert options.json_schema is not None
    grammar = schema_of_file(options.json_schema)
    drafts = 0 if options.plain else options.num_draft_tokens
    base, heads = load_model(place, alone=options.plain or (options.lookup and not drafts))
    tokenizer = Tokenizer.from_folder(base.path)
    grammars = Grammars(tokenizer, base.vocab_size)
    grammars.constraint(grammar)
    special = xtc_special_tokens(tokenizer) if sampling.xtc_probability else ()
    drawing = {"sampling": sampling, "xtc_special_tokens": special}
    backend = open_bound(place, decoding, base, heads, drafts, options.lookup, **drawing)
    return run_generate(backend, tokenizer, options, begin=lambda: backend.bind(grammars.constraint(grammar)))
