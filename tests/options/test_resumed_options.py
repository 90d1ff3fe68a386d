"""The options of an interrupted run: what is taken from it, what may be said anew, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from mtpd_mlx.options.resume import resumed
from mtpd_mlx.options.train import DataConfig, OptimConfig, RunConfig

CLASSES = (DataConfig, OptimConfig, RunConfig)
SAVED = {"data": ["a", "b"], "iters": 7, "adam_betas": [0.9, 0.95], "out": "elsewhere", "resume": False, "overwrite": True}


def taken(given: dict[str, Any], **options: Any) -> list[Any]:
    return resumed(CLASSES, SAVED, given, out=Path("here"), **options)


def test_what_the_run_was_begun_with_comes_back() -> None:
    data, optim, run = taken({"iters": 7, "data": ("a", "b"), "out": "anywhere", "overwrite": True, "resume": True})
    assert (data.data, optim.iters, optim.adam_betas) == (("a", "b"), 7, (0.9, 0.95))
    assert optim.warmup == OptimConfig.warmup
    assert (run.out, run.resume, run.overwrite) == ("here", True, False)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"iters": 8}, "iters is 8, the interrupted run has 7"),
        ({"data": ("a",)}, r"data is \['a'\], the interrupted run has \['a', 'b'\]"),
        ({"warmup": 1234}, f"warmup is 1234, the interrupted run has {OptimConfig.warmup}"),
    ],
)
def test_what_says_otherwise_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^--resume: {words}$"):
        taken(given)


def test_what_may_have_moved_is_taken_as_given() -> None:
    assert taken({"data": ("c",)}, moved=("data",))[0].data == ("c",)
    assert taken({}, moved=("data",))[0].data == ("a", "b")
    with pytest.raises(ValueError, match="iters is 8, the interrupted cache has 7"):
        taken({"data": ("c",), "iters": 8}, moved=("data",), what="interrupted cache")


def test_a_damaged_value_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^--iters: got 'many', expected int"):
        resumed(CLASSES, SAVED | {"iters": "many"}, {}, out=Path("here"))
