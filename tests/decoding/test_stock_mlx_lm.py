"""Stock mlx_lm with our heads as its draft model: the text of plain decoding, the acceptance of our own decoder."""

from pathlib import Path
from typing import Any

import pytest
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.decoding import mlx_lm_draft as stock
from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.loop import generate

PROMPTS = [[7], [5, 6], list(range(5, 20)), list(range(90, 40, -1)), [9] * 12]
K = 4


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads that draft among all tokens, unless a test asks for a draft vocabulary."""
    folder = tmp_path_factory.mktemp("stock")
    base = write_base(folder / "base", scale=8.0)
    drafts = list(range(0, VOCAB, 2)) if getattr(request, "param", "whole") == "drafts" else None
    return write_checkpoint(folder / "heads", base, K, draft_tokens=drafts)


def opened(folder: Path, drafts: int = K) -> tuple[Any, Any]:
    from mlx_lm.utils import load_model

    model, _ = load_model(folder.parent / "base")
    model = stock.with_heads(model, folder)
    return model, model.make_draft_model(drafts)


def run(model: Any, draft: Any, prompt: list[int], length: int = 50, **options: Any) -> list[tuple[int, bool]]:
    from mlx_lm.generate import speculative_generate_step

    options = {"num_draft_tokens": K} | options
    steps = speculative_generate_step(mx.array(prompt), model, draft, max_tokens=length, **options)
    return [(int(token), bool(drafted)) for token, _, drafted in steps]


def plain(model: Any, prompt: list[int], length: int = 50, **options: Any) -> list[int]:
    from mlx_lm.generate import generate_step

    return [int(token) for token, _ in generate_step(mx.array(prompt), model.inner, max_tokens=length, **options)]


@pytest.mark.parametrize(("folder", "drafts"), [("whole", 1), ("whole", K), ("drafts", 2), ("drafts", K)], indirect=["folder"])
def test_text_and_acceptance(folder: Path, drafts: int) -> None:
    model, draft = opened(folder, drafts)
    base, heads, _ = load_for_decoding(folder)
    ours = open_decoder(base, heads, DecodingConfig(plan="growing"), num_draft_tokens=drafts)
    for prompt in PROMPTS:
        got = run(model, draft, prompt, num_draft_tokens=drafts)
        assert [token for token, _ in got] == plain(model, prompt)
        if len(prompt) > 1:
            ours.rewind_to(0)
            chunks = list(generate(ours, prompt, max_tokens=50))
            counted = sum(c.num_drafted for c in chunks)
            assert abs(sum(drafted for _, drafted in got) - counted) <= drafts  # rounds begin one token later in ours


@pytest.mark.parametrize("folder", ["whole", "drafts"], indirect=True)
def test_heads_are_called_with_what_our_cascade_sees(folder: Path) -> None:
    """Draft by draft: the logits of a whole text's drafts are those of the teacher-forced cascade."""
    model, draft = opened(folder)
    from mlx_lm.models.cache import make_prompt_cache

    base, heads, _ = load_for_decoding(folder)
    text = [*PROMPTS[3], *plain(model, PROMPTS[3], 90)]
    tokens = mx.array([text])
    states = heads.cascade(base, base.trunk(tokens), tokens)
    caches, drafts = make_prompt_cache(model), make_prompt_cache(draft)
    done = 0
    for length in (6, 7, 12, 100, 108):  # positions that the main model has seen
        draft(tokens[:, done:length], cache=drafts)
        model(tokens[:, done:length], cache=caches)
        done = length
        for k in range(K):
            at = length + k
            logits = draft(tokens[:, at : at + 1], cache=drafts)
            expected = stock.head_logits(base, heads)(states[k][:, length - 1])
            best = mx.argmax(expected, -1) if heads.draft_tokens is None else heads.draft_tokens[mx.argmax(expected, -1)]
            assert mx.argmax(logits[0, 0]).item() == best.item()
            if heads.draft_tokens is None:
                assert mx.allclose(logits[0, 0], expected[0], atol=1e-3, rtol=1e-3).item()
        drafts[0].trim(K)


@pytest.mark.parametrize("options", [{"prefill_step_size": 3}, {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 10}])
def test_mlx_lms_options(tmp_path: Path, options: dict) -> None:
    from tiny import LLAMA

    wide = LLAMA | {"head_dim": 32}
    target = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "base", wide, scale=8.0), K)
    model, draft = opened(target)
    for prompt in PROMPTS[2:]:
        assert [t for t, _ in run(model, draft, prompt, **options)] == plain(model, prompt, **options)


def test_prompt_caches_across_turns_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

    model, draft = opened(folder)
    first = make_prompt_cache(model) + make_prompt_cache(draft)
    text = list(PROMPTS[2])
    for turn, extra in enumerate([[], PROMPTS[3], [8, 9, 10]]):
        if turn == 1:  # another conversation in between
            run(model, draft, PROMPTS[4], 12)
        answer = run(model, draft, text[-1:] + extra if turn else text, 20, prompt_cache=first)
        text += extra
        assert [t for t, _ in answer] == plain(model, text, 20)
        held = first[0].offset
        text = (text + [t for t, _ in answer])[: held + 1]
        assert held <= len(text)
        save_prompt_cache(str(tmp_path / "cache.safetensors"), first)
        first = load_prompt_cache(str(tmp_path / "cache.safetensors"))


@pytest.mark.parametrize("temp", [0.0, 0.7])
def test_sampling_and_stream_generate_run_unchanged(folder: Path, temp: float) -> None:
    from mlx_lm import stream_generate
    from mlx_lm.sample_utils import make_sampler

    model, tokenizer, draft = stock.load(folder)
    mx.random.seed(0)
    options: dict[str, Any] = {"sampler": make_sampler(temp), "max_tokens": 40}
    made = list(stream_generate(model, tokenizer, "abcdefgh", draft_model=draft, num_draft_tokens=K, **options))
    count, ends = made[-1].generation_tokens, tokenizer.eos_token_ids
    assert count == 40 if made[-1].finish_reason == "length" else count <= 40 and made[-1].token in ends
    assert any(part.from_draft for part in made) and not all(part.from_draft for part in made)
    if not temp:
        plain = stream_generate(model.inner, tokenizer, "abcdefgh", **options)
        assert "".join(part.text for part in made) == "".join(part.text for part in plain)


def test_misuse_is_said(folder: Path) -> None:
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    model, draft = opened(folder, 2)
    with pytest.raises(ValueError, match="num_draft_tokens: got more than 2"):
        run(model, draft, PROMPTS[2], num_draft_tokens=3)
    with pytest.raises(ValueError, match="draft model's cache: got KVCache, expected"):
        draft(mx.array([[1]]), cache=[KVCache()])
    with pytest.raises(ValueError, match=r"expected 1\.\.4"):
        model.make_draft_model(5)
    model, draft = opened(folder)
    cache = make_prompt_cache(model)
    model(mx.array([PROMPTS[3]]), cache=cache)
    with pytest.raises(ValueError, match="both must have seen the same prompt"):
        run(model, draft, [1, 2], prompt_cache=cache + make_prompt_cache(draft))


def test_a_model_may_be_wrapped_again(folder: Path) -> None:
    """As when a cell of a notebook runs twice."""
    model, _ = opened(folder)
    again = stock.with_heads(model, folder)
    assert again.inner is model.inner
    got = run(again, again.make_draft_model(K), PROMPTS[-1])
    assert [token for token, _ in got] == plain(model, PROMPTS[-1])


def test_the_user_s_own_model_stays_as_it_is(folder: Path) -> None:
    """A Base sets the rotation of every block: of modules of its own, over the same weights."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    model, _ = load_model(folder.parent / "base")
    modules = {name: id(module) for name, module in model.named_modules()}
    wrapped = stock.with_heads(model, folder)
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert wrapped.inner.model.layers[0].self_attn.rope is not model.model.layers[0].self_attn.rope
    ours, theirs = dict(tree_flatten(wrapped.inner.parameters())), dict(tree_flatten(model.parameters()))
    assert ours.keys() == theirs.keys() and all(ours[name] is w for name, w in theirs.items())
