"""`mtpd-onnx generate`: texts of prompts.
Called by mtpd_onnx/cli.py."""

from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.options.sampling import GraphSampling
from mtpd_mlx.options.text import BatchedGenerateOptions, check_batches, check_plain

OPTIONS = (RuntimeOptions, BatchedGenerateOptions, GraphSampling)
EXAMPLES = ('mtpd-onnx generate onnx --prompt "Write a haiku about rain."',)


def check(runtime: RuntimeOptions, options: BatchedGenerateOptions, sampling: GraphSampling) -> None:
    check_plain(options.plain, options.num_draft_tokens)
    check_batches(options)
    if options.json_schema is not None and options.num_draft_tokens:
        raise ValueError("--num-draft-tokens: not with --json-schema, whose texts the grammar and lookup draft, no heads")


def run(runtime: RuntimeOptions, options: BatchedGenerateOptions, sampling: GraphSampling) -> int:
    from mtpd_mlx.text.generate import run_generate
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.runtime.open import open_folder

    if options.batch_size != 1:
        from mtpd_onnx.runtime.batched_generate import run_batches

        return run_batches(runtime.folder, options.batch_size, options, sampling, options.lookup, runtime.of_batches())
    if options.json_schema is not None:
        return run_bound(runtime, options, sampling)
    backend = open_folder(
        runtime.folder,
        plain=options.plain or options.num_draft_tokens == 0,
        num_draft_tokens=options.num_draft_tokens or None,
        choose=True,
        lookup=options.lookup,
        sampling=sampling,
        **runtime.of_folder(),
    )
    return run_generate(backend, Tokenizer.from_folder(runtime.folder), options)


def run_bound(runtime: RuntimeOptions, options: BatchedGenerateOptions, sampling: GraphSampling) -> int:
    """Texts that fit --json-schema."""
    from mtpd_mlx.text.generate import run_generate
    from mtpd_mlx.text.grammar import Grammars, schema_of_file
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.runtime.bound import BoundFolder

    assert options.json_schema is not None
    grammar, tokenizer = schema_of_file(options.json_schema), Tokenizer.from_folder(runtime.folder)
    folder = BoundFolder(runtime.folder, **runtime.of_batches())
    grammars = Grammars(tokenizer, folder.manifest.dims["vocab_size"])
    grammars.constraint(grammar)
    drafts = 0 if options.plain else options.num_draft_tokens
    backend = folder.decoder(sampling, drafts, options.lookup)
    return run_generate(backend, tokenizer, options, begin=lambda: backend.bind(grammars.constraint(grammar)))
