"""Which plan a decoder is opened with: measured where there is a choice, which a CPU does not have."""

import pytest
from tiny import write_base, write_checkpoint

from mtpd_mlx.decoding import open as opening
from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.decoding.tuning import calibrate
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.model.runtime import on_cpu


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("model")
    base, heads, _ = load_for_decoding(write_checkpoint(folder / "heads", write_base(folder / "base")))
    return base, heads


def test_several_candidates_are_measured_and_the_choice_is_kept(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = (Plan(), Plan("fixed"))
    monkeypatch.setattr(opening, "candidates", lambda drafts: plans)
    for best in plans:
        monkeypatch.setattr(opening, "time_plans", lambda make, plans, size, best=best: {p: 1.0 + (p != best) for p in plans})
        decoder = open_decoder(*model)
        assert decoder.plan == best
        assert decoder.plan_milliseconds == {str(p): 1000.0 if p == best else 2000.0 for p in plans}


@pytest.mark.skipif(not on_cpu(), reason="of the CPU")
def test_a_cpu_measures_nothing(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "time_plans", lambda *_: pytest.fail("measured"))
    for heads in (model[1], None):
        decoder = open_decoder(model[0], heads)
        assert decoder.plan == Plan() and decoder.plan_milliseconds == {}


@pytest.mark.parametrize(
    ("device", "drafts", "plans"),
    [
        ("cpu", 4, ["growing"]),
        ("cpu", 0, ["growing"]),
        ("metal", 4, ["growing", "fixed", "fixed+compiled"]),
        ("metal", 0, ["growing"]),
        (
            "cuda",
            4,
            ["growing", *(f"fixed+compiled{w}{p}" for w in ("", "+scatter") for p in ("", "+rows"))],
        ),
        ("cuda", 0, ["growing", "fixed+compiled", "fixed+compiled+scatter"]),
    ],
)
def test_candidates_of_a_device(device: str, drafts: int, plans: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "on_cpu", lambda: device == "cpu")
    monkeypatch.setattr(calibrate, "on_cuda", lambda: device == "cuda")
    assert [str(plan) for plan in calibrate.candidates(drafts)] == plans
