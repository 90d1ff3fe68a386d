"""Options of commands that write texts (generate, chat): prompts, length, drafts, output.
Called by these commands, on both runtimes."""

from dataclasses import dataclass
from pathlib import Path

from mtpd_mlx.files.places import check_place
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.schema import NOT_NEGATIVE, POSITIVE, option, same, switch

ESCAPES = "\\n and \\t are line break and tab"  # of texts given by flags: `unescaped`
PROMPTS_HELP = (
    'file of prompts: .jsonl with "prompt" or "messages", or lines of .txt; they go through the chat template where there '
    "is one (see --ignore-chat-template)"
)


def unescaped(text: str) -> str:
    """\\n and \\t in a text that was given by a flag, as mlx_lm.generate reads a prompt."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """ValueError where there is no prompt, or two."""

    prompt: str | None = option(None, f'prompt; "-" reads standard input; {ESCAPES}', short="p", metavar="PROMPT", empty=True)
    prompts: Path | None = option(None, PROMPTS_HELP, metavar="FILE")

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("got --prompt and --prompts, expected one of them")
        if self.prompt is None and self.prompts is None:
            raise ValueError("got no prompt, expected one with --prompt, or a file of them with --prompts")


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    GROUP = "text"

    system_prompt: str | None = option(None, "system message for the chat template", metavar="TEXT", empty=True)
    max_tokens: int = option(256, "tokens of a text, at most", takes=POSITIVE, short="m", metavar="N")
    plain: bool = switch("ordinary decoding, one token per pass")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(TextOptions, PromptOptions):
    """Of both programs."""

    num_draft_tokens: int | None = option(
        None, "drafts per round; 0: plain decoding", takes=NOT_NEGATIVE, metavar="K", unset="all heads"
    )
    stop: tuple[str, ...] = option(
        (),
        f"stop before this text (repeatable), which may be or hold a special token; {ESCAPES}",
        metavar="TEXT",
        repeated=True,
    )
    extra_eos_token: tuple[str, ...] = option((), "further tokens that end the text", metavar="TOKEN")
    ignore_chat_template: bool = switch("use prompts as they are, without the chat template (messages need it)")
    json: bool = switch("one JSON object per prompt instead of streamed text")
    quiet: bool = switch("text only, no statistics")


@dataclass(frozen=True, kw_only=True)
class BoundOptions:
    json_schema: Path | None = option(None, "file of a JSON schema that every text will fit (needs llguidance)", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class LookupOptions:
    lookup: bool = option(True, "also draft what followed the last tokens earlier in prompt or text, where that pays")


@dataclass(frozen=True, kw_only=True)
class TunedGenerateOptions(LookupOptions, BoundOptions, GenerateOptions):
    """Drafts are chosen round by round where nothing else is asked for."""

    num_draft_tokens: int | None = same(GenerateOptions, "num_draft_tokens", unset="chosen round by round")


@dataclass(frozen=True, kw_only=True)
class GraphDraftOptions(LookupOptions):
    """Of `mtpd-onnx`: folders for CUDA have one number of drafts."""

    num_draft_tokens: int | None = same(GenerateOptions, "num_draft_tokens", unset="chosen round by round, on CUDA all heads")


@dataclass(frozen=True, kw_only=True)
class BatchedGenerateOptions(GraphDraftOptions, BoundOptions, GenerateOptions):
    batch_size: int = option(
        1,
        "decode B of --prompts at once, as many as memory holds (without CUDA graphs; needs onnxruntime 1.32 or later)",
        takes=POSITIVE,
        metavar="B",
    )


@dataclass(frozen=True, kw_only=True)
class ChatOptions(TextOptions):
    stop: tuple[str, ...] = same(GenerateOptions, "stop")
    show_drafts: bool = switch("accepted draft tokens in green")


@dataclass(frozen=True, kw_only=True)
class GraphChatOptions(GraphDraftOptions, ChatOptions):
    """Of `mtpd-onnx chat`."""


@dataclass(frozen=True, kw_only=True)
class TunedChatOptions(LookupOptions, ChatOptions):
    num_draft_tokens: int | None = same(TunedGenerateOptions, "num_draft_tokens")
    prompt_cache_file: Path | None = option(None, "go on with this cache where it fits; saved at the end", metavar="FILE")


def stops_of(options: GenerateOptions | ChatOptions) -> list[str]:
    """--stop as it is meant."""
    return [unescaped(text) for text in options.stop]


def check_plain(plain: bool, num_draft_tokens: int | None, exact: bool = False, show_drafts: bool = False) -> None:
    """ValueError where plain decoding is asked for with what it has not."""
    how = "--plain" if plain else "--num-draft-tokens 0"
    if plain and num_draft_tokens:
        raise ValueError("--num-draft-tokens: not with --plain, which drafts nothing")
    for name, asked in (("--exact", exact), ("--show-drafts", show_drafts)):
        if asked and (plain or num_draft_tokens == 0):
            raise ValueError(f"{name}: not with {how}, which drafts nothing")


def check_batches(generate: BatchedGenerateOptions) -> None:
    """ValueError where batches are asked for with what they cannot do."""
    if generate.batch_size != 1 and generate.json_schema is not None:
        raise ValueError("--json-schema: not with --batch-size; such texts are decoded one at a time")


def check_cache_file(chat: TunedChatOptions, decoding: DecodingConfig) -> None:
    """ValueError, before a word is said, where the cache could not be saved at the end."""
    if (file := chat.prompt_cache_file) is None:
        return
    if not file.parent.is_dir():
        raise ValueError(f"--prompt-cache-file: no folder {file.parent}")
    check_place("--prompt-cache-file", file)
    if decoding.kv_bits is not None:
        raise ValueError("--prompt-cache-file: a quantised cache cannot be saved; leave --kv-bits out")
