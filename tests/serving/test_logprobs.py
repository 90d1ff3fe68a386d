"""Log-probabilities of both runtimes' servers against plain forward passes of the base, alone and among others."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.serving import events, serving, with_template
from mtpd_onnx.commands.serve import OnnxRuntime
from mtpd_onnx.export.export import export_checkpoint
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.commands.serve import MLXRuntime
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.options.runtime import RuntimeOptions

CHAT, COMPLETE, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
PROMPT, TOLERANCE = "tell me a b c a b c a b c", 1e-4
Asked = tuple[Any, Any, Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("logprobs")
    base = with_template(write_base(folder / "base", scale=3.0))
    checkpoint = write_checkpoint(folder / "heads", base, 3)
    export_checkpoint(checkpoint, folder / "onnx", ExportOptions())
    return checkpoint, folder / "onnx"


@pytest.fixture(scope="module", params=["mlx", "onnx"])
def asked(folders: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[Asked]:
    """(client, tokenizer, base)."""

    def opened() -> Any:
        if request.param == "mlx":
            return MLXRuntime(RunnableOptions(checkpoint=str(folders[0])), DecodingConfig(), None)
        return OnnxRuntime(RuntimeOptions(folder=folders[1]), None)

    with serving(opened) as (client, engine):
        yield client, engine.runtime.tokenizer, load_base(str(folders[0].parent / "base"))


def oracle(base: Any, tokens: list[int]) -> np.ndarray:
    """float64 [len(tokens), V]: log-softmax behind each of the tokens, by one plain pass."""
    logits = np.array(base.model(mx.array([tokens]))[0].astype(mx.float32)).astype(np.float64)
    most = logits.max(-1, keepdims=True)
    found: np.ndarray = logits - most - np.log(np.exp(logits - most).sum(-1, keepdims=True))
    return found


def post(client: Any, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def check(asked: Asked, prompt: list[int], content: list[dict[str, Any]], top: int) -> None:
    """Each of the tokens, and the `top` most probable ones beside it, are the oracle's."""
    _, tokenizer, base = asked
    said = [tokenizer.encode(each["token"], add_special_tokens=False)[0] for each in content]
    rows = oracle(base, [*prompt, *said])[len(prompt) - 1 :]
    for each, token, row in zip(content, said, rows, strict=False):
        assert abs(each["logprob"] - row[token]) < TOLERANCE and each["bytes"] == list(each["token"].encode())
        told = [one["logprob"] for one in each["top_logprobs"]]
        assert np.allclose(told, np.sort(row)[::-1][:top], atol=TOLERANCE), (told, np.sort(row)[::-1][:top])
        for one in each["top_logprobs"][:top]:
            if one["token"] != "<end>":
                assert abs(one["logprob"] - row[tokenizer.encode(one["token"], add_special_tokens=False)[0]]) < TOLERANCE


def chat_prompt(asked: Asked, text: str) -> list[int]:
    tokenizer = asked[1]
    whole = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    return list(tokenizer.encode(whole, add_special_tokens=False))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 3, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_chats_against_the_oracle(asked: Asked, sampling: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 40, **sampling}
    (said,) = post(asked[0], CHAT, **body, logprobs=True, top_logprobs=5)["choices"]
    content = said["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == said["message"]["content"] and content
    check(asked, chat_prompt(asked, PROMPT), content, 5)
    if not sampling:
        assert post(asked[0], CHAT, **body)["choices"][0]["message"] == said["message"]


def test_streams_say_the_same_under_speculation(asked: Asked) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 40, "logprobs": True, "top_logprobs": 2}
    whole = post(asked[0], CHAT, **body)
    with asked[0].stream("POST", CHAT, json=body | {"stream": True}) as stream:
        chunks = [c["choices"][0] for c in events(stream.iter_lines())]
    told = [each for c in chunks if c["logprobs"] for each in c["logprobs"]["content"]]
    for chunk in chunks:
        text = "".join(each["token"] for each in (chunk["logprobs"] or {"content": []})["content"])
        assert text == chunk["delta"].get("content", "")
    expected = whole["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in told] == [each["token"] for each in expected]
    assert np.allclose([each["logprob"] for each in told], [each["logprob"] for each in expected], atol=TOLERANCE)
    assert any("heads" in kind or "lookup" in kind for kind in whole["usage"]["mtpd"]["rounds"]), "nothing was drafted"


def test_among_others(asked: Asked) -> None:
    """Texts with and without log-probabilities side by side: all as they are alone."""

    def ask(i: int) -> Any:
        body = {"messages": [{"role": "user", "content": PROMPT[: 8 + i]}], "max_tokens": 20}
        return post(asked[0], CHAT, **body, **({"logprobs": True, "top_logprobs": 3} if i % 2 else {}))["choices"][0]

    alone = [ask(i) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(ask, range(6)))
    for i, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert one["message"] == other["message"]
        if i % 2:
            check(asked, chat_prompt(asked, PROMPT[: 8 + i]), other["logprobs"]["content"], 3)


def test_a_stop_text_takes_its_tokens_along(asked: Asked) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 40, "logprobs": True}
    text = post(asked[0], CHAT, **body)["choices"][0]["message"]["content"]
    stop = text[5:8]
    for extra in ({}, {"stream": True}):
        answer = asked[0].post(CHAT, json=body | {"stop": stop} | extra)
        choices = [c["choices"][0] for c in events(iter(answer.text.splitlines()))] if extra else answer.json()["choices"]
        content = [each["token"] for c in choices if c["logprobs"] for each in c["logprobs"]["content"]]
        assert "".join(content) == text[: text.index(stop)]


def test_completions_and_their_prompts(asked: Asked) -> None:
    client, tokenizer, base = asked
    ids = tokenizer.encode(PROMPT)
    for again in range(2):  # the second time the prompt is cached
        said = post(client, COMPLETE, prompt=PROMPT, max_tokens=12, logprobs=3, echo=bool(again))["choices"][0]
        found, shift = said["logprobs"], len(ids) if again else 0
        assert "".join(found["tokens"]).removesuffix("<end>") == said["text"]
        assert said["text"].startswith(PROMPT) == bool(again)
        tokens = [*ids, *tokenizer.encode("".join(found["tokens"][shift:]).removesuffix("<end>"), add_special_tokens=False)]
        rows = oracle(base, tokens)
        first = 0 if again else len(ids)
        assert found["text_offset"] == list(range(len(found["tokens"])))
        for j, token in enumerate(tokens[first:]):
            if first + j == 0:
                assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
                continue
            row = rows[first + j - 1]
            assert abs(found["token_logprobs"][j] - row[token]) < TOLERANCE
            told = sorted(found["top_logprobs"][j].values(), reverse=True)
            assert np.allclose(told[:3], np.sort(row)[::-1][:3], atol=TOLERANCE) and 3 <= len(told) <= 4


def test_what_ends_a_completion_is_told(asked: Asked) -> None:
    """Programs that score texts drop the one token after an echoed prompt: it has to be there, whatever it is."""
    bias = {str(i): -100 for i in range(1, VOCAB)}
    said = post(asked[0], COMPLETE, prompt=PROMPT, max_tokens=1, logprobs=1, echo=True, logit_bias=bias)["choices"][0]
    assert said["text"] == PROMPT and said["finish_reason"] == "stop"
    assert said["logprobs"]["tokens"] == [*PROMPT, "<end>"]
    row = oracle(asked[2], asked[1].encode(PROMPT))[-1]
    assert abs(said["logprobs"]["token_logprobs"][-1] - row[0]) < TOLERANCE, "biases are no part of it"


def test_responses(asked: Asked) -> None:
    body = {"input": PROMPT, "max_output_tokens": 20, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = post(asked[0], RESPONSES, **body)["output"][0]["content"][0]
    assert "".join(each["token"] for each in part["logprobs"]) == part["text"]
    check(asked, chat_prompt(asked, PROMPT), part["logprobs"], 2)
    answer = asked[0].post(RESPONSES, json=body | {"stream": True}).text
    told = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: ")]
    deltas = [e for e in told if e["type"] == "response.output_text.delta"]
    assert all("".join(one["token"] for one in e["logprobs"]) == e["delta"] for e in deltas)
    (done,) = [e for e in told if e["type"] == "response.output_text.done"]
    assert [one["token"] for one in done["logprobs"]] == [one["token"] for one in part["logprobs"]]


def test_under_a_grammar_they_are_the_model_s_own(asked: Asked) -> None:
    said = post(
        asked[0], CHAT, messages=[{"role": "user", "content": PROMPT}], max_tokens=30, logprobs=True, top_logprobs=4,
        structured_outputs={"choice": ["zebra", "quagga"]},
    )["choices"][0]  # fmt: skip
    assert said["message"]["content"] in ("zebra", "quagga")
    check(asked, chat_prompt(asked, PROMPT), said["logprobs"]["content"], 4)
