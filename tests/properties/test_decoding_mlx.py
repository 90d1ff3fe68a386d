"""Every way of decoding on MLX, driven in any order, against recomputing the text from its beginning."""

from collections.abc import Callable
from functools import cache

import pytest
from decoding_machine import Oracle, check_backend
from helpers.schedule import Schedule
from tiny import write_base, write_checkpoint

from mtpd_mlx.decoding.choosing import ChoosingDecoder
from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.decoding.text_state import Model
from mtpd_mlx.decoding.token_rules import Greedy
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.rounds import StepBackend

K, CAPACITY = 4, 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple]:
    """hidden source -> base, heads, oracle"""
    folder = tmp_path_factory.mktemp("model")
    base_folder = write_base(folder / "base", scale=8.0)

    @cache
    def load(source: str) -> tuple:
        base, heads, _ = load_for_decoding(write_checkpoint(folder / source, base_folder, K, source, noise=0.06))
        return base, heads, Oracle(base, heads)

    return load


@pytest.mark.parametrize("source", ["postnorm", "prenorm"])
def test_rounds_of_this_model_accept_now_more_drafts_now_fewer(model: Callable[[str], tuple], source: str) -> None:
    assert len(model(source)[2].acceptance()) > 2


@pytest.mark.parametrize(
    ("plan", "drafts", "source"),
    [
        ("growing", K, "postnorm"),
        ("growing", 1, "prenorm"),
        ("fixed", K, "postnorm"),
        ("fixed+scatter", 1, "postnorm"),
        ("fixed+compiled", 2, "prenorm"),
    ],
)
def test_rounds(model: Callable[[str], tuple], plan: str, drafts: int, source: str) -> None:
    base, heads, oracle = model(source)
    options = DecodingConfig(plan=plan)
    make = lambda: open_decoder(base, heads, options, num_draft_tokens=drafts, capacity=CAPACITY)  # noqa: E731
    check_backend(oracle, make, drafts_of=lambda decoder, _: decoder.settled().drafts.tolist())


@pytest.mark.parametrize(("drafts", "source"), [(K, "postnorm"), (2, "prenorm"), (0, "postnorm")])
def test_chosen_rounds(model: Callable[[str], tuple], drafts: int, source: str) -> None:
    """Whatever is chosen: heads that lag behind draft as fresh ones do."""
    base, heads, oracle = model(source)
    kinds = ("plain", "heads", "lookup") if drafts else ("plain", "lookup")

    def make() -> ChoosingDecoder:
        own = Model(base, heads if drafts else None, drafts, Greedy())
        return ChoosingDecoder(own, Schedule(0, most=drafts or 5, kinds=kinds), CAPACITY)

    check_backend(oracle, make)


@pytest.mark.parametrize("plan", ["growing", "fixed"])
def test_plain(model: Callable[[str], tuple], plan: str) -> None:
    base, _, oracle = model("postnorm")
    check_backend(oracle, lambda: open_decoder(base, None, DecodingConfig(plan=plan), capacity=CAPACITY))


def drafted_by_model(backend: StepBackend, token: int) -> list[int]:
    return backend.model.draft(token)[: backend.num_draft_tokens]


@pytest.mark.parametrize("drafts", [2, K])
def test_step_by_step(model: Callable[[str], tuple], drafts: int) -> None:
    base, heads, oracle = model("postnorm")
    step_by_step = lambda: StepBackend(MLXModel(base, heads, capacity=CAPACITY), drafts)  # noqa: E731
    check_backend(oracle, step_by_step, drafted_by_model)


def test_step_by_step_round_in_an_empty_context(model: Callable[[str], tuple]) -> None:
    base, heads, oracle = model("postnorm")
    assert StepBackend(MLXModel(base, heads)).round(5).emitted[:1] == oracle.choices([5])
