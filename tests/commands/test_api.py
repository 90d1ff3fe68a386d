"""mtpd_mlx.api, and the example of docs/python.md on a tiny base."""

import json
import re
from pathlib import Path

import pytest
from helpers.runs import SHORT
from tiny import write_base

from mtpd_mlx import api

EXAMPLE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    write_base(folder / "base")
    (folder / "data.txt").write_text("\n".join("the cat sat on the mat and then the dog sat there" for _ in range(40)))
    reports: list[dict] = []
    best = api.train(
        model=str(folder / "base"), data=str(folder / "data.txt"), out=str(folder / "heads"), show=reports.append, **SHORT
    )
    assert best["tau"] >= 1 and len(best["car"]) == 2 and reports
    return folder


def test_text_is_that_of_plain_decoding(place: Path) -> None:
    model = api.load(str(place / "heads"))
    text = model.generate("the cat", max_tokens=24)
    assert text and text == api.load(str(place / "heads"), plain=True).generate("the cat", max_tokens=24)
    assert model.stats.tokens == 24 and model.stats.tau >= 1
    assert "".join(model.stream("the cat", max_tokens=24)) == text  # a new text every time
    assert api.load(str(place / "base")).generate("the cat", max_tokens=24) == text


def test_a_seed_repeats_a_sampled_text(place: Path) -> None:
    texts = {api.load(str(place / "heads"), temp=1.0, seed=3).generate("the", max_tokens=16) for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [({"learning_rat": 1e-3}, "learning_rate"), ({"iters": "many"}, "--iters"), ({"out": None}, "--out")],
)
def test_a_wrong_option_is_named(place: Path, options: dict, words: str) -> None:
    given = {"model": str(place / "base"), "data": str(place / "data.txt"), "out": str(place / "new"), **options}
    with pytest.raises(ValueError, match=words):
        api.train(**given)
    assert not (place / "new").exists()


def test_the_example_of_the_documents_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(encoding="utf-8"), re.DOTALL)
    (run := place / "run").mkdir()
    (run / "smollm2").symlink_to(place / "base")
    (run / "my_data").mkdir()
    rows = [json.dumps({"text": "the cat sat on the mat and then the dog sat there"}) for _ in range(40)]
    (run / "my_data" / "train.jsonl").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(run)
    small = re.sub(r"iters=\d+", "iters=4, batch_size=2, max_seq_length=24, warmup=0, val_batches=1", code)
    exec(compile(small.replace("max_tokens=64", "max_tokens=8"), str(EXAMPLE), "exec"), {})
    assert re.search(r"\d\.\d\d tokens per pass, \d+ tokens/s", capsys.readouterr().out)
