"""Several texts of one request: `n`, `best_of`, several prompts, on both runtimes."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import events, serving, with_template
from mtpd_onnx.commands.serve import OnnxRuntime
from mtpd_onnx.export.export import export_checkpoint
from tiny import write_base, write_checkpoint

from mtpd_mlx.commands.serve import MLXRuntime
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.serving.forms.choices import seed_of

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
LONG = "one two three four five six seven eight nine ten"  # longer than what is copied for (scheduler.LOST)
HOT = {"temperature": 1.5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("choices")
    base = with_template(write_base(folder / "base"))
    checkpoint = write_checkpoint(folder / "heads", base, 3)
    export_checkpoint(checkpoint, folder / "onnx", ExportOptions())
    return checkpoint, folder / "onnx"


@pytest.fixture(scope="module", params=["mlx", "onnx"])
def asked(folders: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    def opened() -> Any:
        if request.param == "mlx":
            return MLXRuntime(RunnableOptions(checkpoint=str(folders[0])), DecodingConfig(), None)
        return OnnxRuntime(RuntimeOptions(folder=folders[1]), None, 4)

    with serving(opened, max_batch=4, max_waiting=6, prefix_cache=0.01) as found:
        yield found


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def post(asked: tuple[Any, Any], path: str, **body: Any) -> dict[str, Any]:
    answer = asked[0].post(path, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def texts(answer: dict[str, Any]) -> list[str]:
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices]


def test_greedy_texts_are_that_of_one(asked: tuple[Any, Any]) -> None:
    body = {"messages": user("a b"), "max_tokens": 10}
    one, three = post(asked, CHAT, **body), post(asked, CHAT, n=3, **body)
    assert texts(three) == texts(one) * 3
    assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]


def test_seeds(asked: tuple[Any, Any]) -> None:
    body = {"messages": user("a b"), "max_tokens": 12, **HOT}
    said = texts(post(asked, CHAT, n=4, seed=5, **body))
    assert len(set(said)) == 4 and said == texts(post(asked, CHAT, n=4, seed=5, **body))
    assert [said[i] for i in (0, 2)] == [texts(post(asked, CHAT, seed=seed_of(5, i), **body))[0] for i in (0, 2)]
    assert len({seed_of(seed, i) for seed in range(50) for i in range(50)}) == 2500


def test_without_a_seed_they_differ(asked: tuple[Any, Any]) -> None:
    """Six texts in at most four rows: every row that is used again has new random numbers."""
    body = {"messages": user("a b"), "max_tokens": 12, **HOT}
    said = texts(post(asked, CHAT, n=6, **body)) + [texts(post(asked, CHAT, **body))[0] for _ in range(6)]
    assert len(set(said)) == 12


def test_their_prompt_is_read_once(asked: tuple[Any, Any]) -> None:
    before = asked[1].prefixes.saved_tokens
    answer = post(asked, CHAT, messages=user(LONG), n=4, max_tokens=40, **HOT)
    assert asked[1].prefixes.saved_tokens - before == 3 * (answer["usage"]["prompt_tokens"] - 1)


def test_streams_of_several(asked: tuple[Any, Any]) -> None:
    body = {"messages": user("a b"), "max_tokens": 12, "n": 3, "seed": 5, **HOT}
    expected = texts(post(asked, CHAT, **body))
    with asked[0].stream("POST", CHAT, json=body | {"stream": True, "stream_options": {"include_usage": True}}) as stream:
        *chunks, last = events(stream.iter_lines())
    said, ended = [""] * 3, list[int]()
    for chunk in chunks:
        (choice,) = chunk["choices"]
        said[choice["index"]] += choice["delta"].get("content", "")
        ended += [choice["index"]] if choice["finish_reason"] else []
    assert said == expected and sorted(ended) == [0, 1, 2]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 36


def test_the_best_of_several(asked: tuple[Any, Any]) -> None:
    body: dict[str, Any] = {"prompt": "a b", "max_tokens": 8, "seed": 5, **HOT}
    every = post(asked, COMPLETE, n=5, logprobs=0, **body)["choices"]
    means = [sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"]) for c in every]
    ranked = sorted(range(5), key=lambda i: -means[i])
    best = post(asked, COMPLETE, n=2, best_of=5, **body)
    assert texts(best) == [every[i]["text"] for i in ranked[:2]] and best["choices"][0]["logprobs"] is None
    assert best["usage"]["completion_tokens"] == sum(len(c["logprobs"]["tokens"]) for c in every)


def test_several_prompts(asked: tuple[Any, Any]) -> None:
    alone = [texts(post(asked, COMPLETE, prompt=p, max_tokens=6))[0] for p in ("ab", "cde")]
    both = post(asked, COMPLETE, prompt=["ab", "cde"], max_tokens=6, n=2, echo=True)
    assert texts(both) == ["ab" + alone[0]] * 2 + ["cde" + alone[1]] * 2
    assert both["usage"]["prompt_tokens"] == 5


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"n": 7}, "n"),
    (CHAT, {"n": "2"}, "n"),
    (CHAT, {"best_of": 2}, "best_of"),
    (COMPLETE, {"best_of": 1, "n": 2}, "best_of"),
    (COMPLETE, {"best_of": 2, "stream": True}, "best_of"),
    (COMPLETE, {"best_of": 9}, "best_of"),
    (COMPLETE, {"prompt": ["a", "b"], "n": 4}, "n"),
    (COMPLETE, {"prompt": ["a", "b"], "best_of": 4}, "best_of"),
    (COMPLETE, {"prompt": ["a"] * 7}, "prompt"),
    (COMPLETE, {"prompt": ["a", 3]}, "prompt"),
]


@pytest.mark.parametrize(("path", "fields", "param"), REFUSED)
def test_limits(asked: tuple[Any, Any], path: str, fields: dict[str, Any], param: str) -> None:
    body = {"messages": user("a")} if path == CHAT else {"prompt": "a"}
    answer = asked[0].post(path, json=body | {"max_tokens": 2} | fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_nothing_is_left_of_those_whose_client_goes(asked: tuple[Any, Any]) -> None:
    client, engine = asked
    body = {"messages": user(LONG), "max_tokens": 150, "n": 6, "stream": True, **HOT}
    with client.stream("POST", CHAT, json=body) as stream:
        next(stream.iter_lines())
    for _ in range(200):
        if not (engine.running or engine.waiting):
            break
        time.sleep(0.05)
    assert engine.running == engine.waiting == 0
    assert texts(post(asked, CHAT, messages=user("a b"), max_tokens=3))
    assert engine.integrity == "ok"
