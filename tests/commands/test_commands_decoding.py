"""bench, probe, tune, verify, chat, doctor and the fuzz tool as a user calls them, on tiny models."""

import io
import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from helpers.tools import tool
from tiny import LLAMA, write_base, write_checkpoint

from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.cli import main
from mtpd_mlx.commands import tune
from mtpd_mlx.decoding.tuning.machine import machine_key
from mtpd_mlx.decoding.tuning.stored import Tuned, read_tuned, write_tuned
from mtpd_mlx.model.runtime import mx

QUICK = ["--plan", "growing", "-m", "16", "--limit", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    return write_checkpoint(folder / "heads", write_base(folder / "base", scale=8.0), 3)


@pytest.fixture
def checkpoint(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "heads"))


@pytest.fixture
def prompts(tmp_path: Path) -> list[str]:
    files = []
    for name, letters in (("one", "abcdefgh"), ("two", "zyxwvuts")):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps({"id": str(i), "prompt": letters[: i + 4]}) + "\n" for i in range(4)))
    return [str(file) for file in files]


def output(capsys: pytest.CaptureFixture, arguments: list[str], status: int = 0) -> str:
    assert main(arguments) == status
    return capsys.readouterr().out


def test_bench(checkpoint: Path, prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["bench", str(checkpoint), "--prompts", *prompts, *QUICK, "--repeats", "2"]
    draft = ["--draft-model", str(checkpoint.parent.parent / "nothing")]
    assert main([*arguments, *draft]) == 1
    draft[1] = read_config(checkpoint).base.id
    svg = tmp_path / "bench.svg"
    values = json.loads(output(capsys, [*arguments, *draft, "--exact", "--json", "--svg", str(svg)]))
    assert {"stock_plain_tok_s", "plain_tok_s", "mtpd_tok_s", "speedup", "tau", "car"} <= values.keys()
    assert values["speedup"] == pytest.approx(values["mtpd_tok_s"] / values["stock_plain_tok_s"])
    assert values["tau"] == pytest.approx(1 + sum(values["car"])) and len(values["car"]) == 3
    assert values["identical_to_stock"] == {"plain": 1, "mtpd": 1, "stock speculative": 1, "exact": 1}
    assert list(values["sets"]) == ["one", "two"] and values["first_divergences"] == []
    assert values["exact_price"] == pytest.approx(1 - values["exact_tok_s"] / values["mtpd_tok_s"])
    both = [values["sets"][name]["tau"] for name in ("one", "two")]
    assert min(both) <= values["tau"] <= max(both)
    drawing = svg.read_text()
    assert ElementTree.fromstring(drawing).tag.endswith("svg") and "mlx_lm plain" in drawing
    text = output(capsys, [*arguments, "--repeats", "1", "--temp", "0.8", "--top-p", "0.9"])
    assert "mtpd plain" in text and "tau" in text and "identical" not in text


def test_plain_decoding_beside_rounds_chooses_its_own_plan(
    checkpoint: Path, prompts: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtpd_mlx.decoding import open as opening

    opened, with_plan = [], opening.with_plan
    monkeypatch.setattr(
        opening,
        "with_plan",
        lambda m, plan, capacity: opened.append((m.num_draft_tokens, plan)) or with_plan(m, plan, capacity),
    )
    asked, short = ["--plan", "fixed+scatter+rows"], ["-m", "4", "--limit", "1"]
    bench = ["bench", str(checkpoint), "--prompts", prompts[0], *asked, *short, "--repeats", "1", "--json"]
    values = json.loads(output(capsys, bench))
    assert (values["plan"], values["plain_plan"]) == ("fixed+scatter+rows", "growing")
    output(capsys, ["tune", str(checkpoint), "--prompts", prompts[0], *asked, *short, "--repeats", "1", "--dry-run"])
    output(capsys, ["verify", str(checkpoint), "--prompts", prompts[0], *asked, *short, "--greedy-only"])
    text = output(capsys, ["probe", str(checkpoint), "--contexts", "24", *asked])
    assert "context 24, plan fixed+scatter+rows" in text
    assert {plan for drafts, plan in opened if not drafts} == {"auto"}
    assert {plan for drafts, plan in opened if drafts} == {"fixed+scatter+rows"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--svg", "nowhere/b.svg"], "--svg nowhere/b.svg: expected a file in a folder that is there"),
        (
            ["tune", "-m", "900"],
            "no room for a prompt: the context leaves -648 positions, expected at least 1; --max-tokens may be too large",
        ),
        (["bench", "--cool-down", "-1"], "--cool-down: got -1.0, expected 0..3600"),
        (["tune", "--cool-down", "nan"], "--cool-down: got nan, expected 0..3600"),
        (["tune", "--repeats", "0"], "--repeats: got 0, expected at least 1"),
        (["verify", "--tolerance", "nan"], "--tolerance: got nan, expected at least 0"),
        (["bench", "--temp", "1", "--seed", "-1"], "--seed: got -1, expected at least 0"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(
    checkpoint: Path, prompts: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    command, *options = arguments
    assert main([command, str(checkpoint), "--prompts", prompts[0], *QUICK, *options]) == 1
    assert capsys.readouterr().err == f"mtpd {command}: error: {message}\n"


def test_sets_of_one_stem_are_kept_apart(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [tmp_path / folder / "x.txt" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("abcd\n")
    names = [str(file) for file in files]
    bench = ["bench", str(checkpoint), *QUICK, "--repeats", "1", "--json", "--prompts"]
    assert list(json.loads(output(capsys, [*bench, *names]))["sets"]) == names
    measure = ["eval", str(checkpoint), "-m", "8", "--json", "--prompts"]
    assert list(json.loads(output(capsys, [*measure, *names]))["sets"]) == names
    assert main([*bench, names[0], names[0]]) == 1
    assert f"got {names[0]} twice" in capsys.readouterr().err
    assert main([*bench, names[0], "--limit", "-1"]) == 1
    assert "--limit: got -1, expected at least 1" in capsys.readouterr().err


def test_probe_of_a_bare_model_and_of_heads(checkpoint: Path, prompts: list[str], capsys: pytest.CaptureFixture) -> None:
    base = read_config(checkpoint).base.id
    values = json.loads(output(capsys, ["probe", base, "--contexts", "24", "--plan", "growing", "--json"]))
    row = values["contexts"][0]
    assert list(row["verify_ms"]) == [str(m) for m in range(1, 18)] and row["verify_ratio"]["1"] == 1
    assert set(row["break_even"]) == {"1", "2", "3", "4", "6", "8", "12", "16"} and values["car"] is None
    text = output(capsys, ["probe", str(checkpoint), "--contexts", "24", "--plan", "growing", "--prompts", prompts[0]])
    assert "T(m)/T(1)" in text and "with these heads' CAR" in text
    assert "speed-up" not in output(capsys, ["probe", base, "--contexts", "24", "--plan", "growing"])
    assert main(["probe", base, "--contexts", "9999"]) == 1
    assert "--contexts: got [9999], expected some in 1..120" in capsys.readouterr().err


def test_probe_says_what_it_leaves_out_and_what_it_lacks(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["probe", str(checkpoint), "--plan", "growing", "--contexts"]
    assert main([*arguments, "24", "512"]) == 0
    captured = capsys.readouterr()
    assert "mtpd: context 512 left out: this model's context is 256" in captured.err
    assert "not recorded: --prompts FILE measures it" in captured.out and "break-even AR  speed-up" not in captured.out
    assert main([*arguments, "0", "24"]) == 1
    file, car = checkpoint / "mtp_config.json", [0.8, 0.6, 0.5]
    record = {"eval": {"validation": {"car": car, "tau": 2.9}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | record))
    assert json.loads(output(capsys, [*arguments, "24", "--json"]))["car"] == car


def test_probe_runs_what_it_is_asked_to(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtpd_mlx.decoding import text_state as host
    from mtpd_mlx.decoding.tuning import costs

    seen: list[tuple[bool, bool]] = []  # of every model's passes: row by row? over quantised caches?

    class Seen(host.Model):
        def __post_init__(self) -> None:
            super().__post_init__()
            run = self.verify_pass
            self.verify_pass = lambda tokens, caches: (
                seen.append((self.exact, type(caches[0]).__name__ == "QuantizedKVCache")),
                run(tokens, caches),
            )[1]

    monkeypatch.setattr("mtpd_mlx.decoding.open.Model", Seen)
    monkeypatch.setattr(costs, "Model", Seen)
    probe = ["probe", str(checkpoint), "--contexts", "24"]
    text = output(capsys, [*probe, "--exact"])
    assert ", --exact" in text and seen and all(exact for exact, _ in seen)
    assert main([*probe, "--exact", "--plan", "fixed"]) == 1
    wide = write_checkpoint(tmp_path / "wide", write_base(tmp_path / "base", LLAMA | {"head_dim": 32}), 1)
    probe = ["probe", str(wide), "--contexts", "24", "--kv-bits", "4", "--kv-group-size", "32"]
    seen.clear()
    output(capsys, [*probe, "--quantized-kv-start", "0", "--json"])
    assert seen and all(quantised for _, quantised in seen)
    assert main(probe) == 0
    assert "nothing is quantised" in capsys.readouterr().err


def test_tune_stores_its_choice_and_generate_follows_it(
    checkpoint: Path, prompts: list[str], capsys: pytest.CaptureFixture
) -> None:
    arguments = ["tune", str(checkpoint), "--prompts", prompts[0], *QUICK, "--repeats", "1", "--json"]
    before = (checkpoint / "mtp_config.json").read_text()
    values = json.loads(output(capsys, [*arguments, "--dry-run"]))
    assert set(values["tokens_per_second"]) == {"stock", "plain", "K=1", "K=2", "K=3"} and not values["stored"]
    assert (checkpoint / "mtp_config.json").read_text() == before
    values = json.loads(output(capsys, arguments))
    stored = read_tuned(checkpoint, values["machine"])
    assert stored is not None and vars(stored) == values["chosen"]
    assert stored.costs["plain"] == 1 and {"heads 1", "heads 2", "heads 3", "lookup 4"} <= set(stored.costs)
    assert "plain steps that a round takes: plain 1.00, heads 1" in tune.describe(values, stored.name)
    generate = ["generate", str(checkpoint), "-p", "abcdef", "-m", "20", "--json"]
    texts = []
    dear = {kind: 50.0 for kind in stored.costs} | {"plain": 1.0}
    entries = [Tuned(2, "fixed", 1.5), Tuned(0, "growing", 1.5), Tuned(3, "growing", 1.5, dear)]
    for entry in entries:  # of older versions, without costs, and of this one: every round is chosen
        write_tuned(checkpoint, machine_key(mx.float32), entry)
        record = json.loads(output(capsys, generate))
        assert record["stats"]["num_draft_tokens"] == 3 and record["stats"]["chosen"]
        texts.append(record["tokens"])
    assert set(record["stats"]["chosen"]) == {"plain"}
    asked = json.loads(output(capsys, [*generate, "--num-draft-tokens", "3"]))
    assert asked["stats"]["num_draft_tokens"] == 3 and [asked["tokens"]] * 3 == texts


def test_a_base_without_heads_decodes_with_lookup(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    """The text is plain decoding's, and where it repeats the prompt or itself most of it is drafted."""
    base = read_config(checkpoint).base.id
    generate = ["generate", base, "-p", "abcabcabcabcabcabc", "-m", "120", "--json", "--ignore-chat-template"]
    plain, ours = (json.loads(output(capsys, [*generate, *more])) for more in (["--plain"], []))
    assert plain["tokens"] == ours["tokens"] and set(plain["stats"]["chosen"]) == {"plain"}
    assert any(name.startswith("lookup") for name in ours["stats"]["chosen"])


def test_tune_chooses_plain_unless_drafts_gain() -> None:
    speeds = {"stock": 100.0, "plain": 101.0, "K=1": 102.0, "K=2": 90.0}
    plans = {1: "growing", 2: "fixed"}
    assert tune.choose(speeds, plans) == Tuned(0, "auto", 1.01)
    assert tune.choose(speeds | {"K=2": 150.0}, plans) == Tuned(2, "fixed", 1.5)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"plan": "growing"}, "missing key 'num_draft_tokens'"),
        (vars(Tuned(9, "growing", 1.0)), r"got 9, expected 0\.\.3"),
        (vars(Tuned(2, "growing", 1.0)) | {"num_draft_tokens": "2"}, "got '2', expected 0"),
        (vars(Tuned(2, "shrinking", 1.0)), "plan: got 'shrinking'"),
        (vars(Tuned(2, "growing", 1.0)) | {"speedup": "fast"}, "speedup: got 'fast'"),
        ([2, "growing"], "got list, expected an object"),
        (vars(Tuned(2, "growing", 1.0)) | {"costs": [1]}, "costs: got list, expected an object"),
        (vars(Tuned(2, "growing", 1.0)) | {"costs": {"heads": 1.0}}, "got 'heads', expected plain, heads N or lookup N"),
        (vars(Tuned(2, "growing", 1.0)) | {"costs": {"heads 2": -1}}, "costs: heads 2: got -1, expected a number above 0"),
    ],
)
def test_a_broken_entry_is_said_and_tune_mends_it(checkpoint: Path, entry: Any, message: str) -> None:
    file, good = checkpoint / "mtp_config.json", Tuned(2, "growing", 1.5)
    config = json.loads(file.read_text())
    for table in ({"here": entry}, entry if isinstance(entry, list) else {"here": [entry]}):
        file.write_text(json.dumps(config | {"tuned": table}))
        with pytest.raises(ValueError, match=r"tuned: .*run mtpd tune again") as error:
            read_tuned(checkpoint, "here")
        assert "\n" not in str(error.value)
        write_tuned(checkpoint, "here", good)
        assert read_tuned(checkpoint, "here") == good and read_tuned(checkpoint, "elsewhere") is None
    file.write_text(json.dumps(config | {"tuned": {"here": entry}}))
    with pytest.raises(ValueError, match=message):
        read_tuned(checkpoint, "here")


def test_verify(checkpoint: Path, prompts: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["verify", str(checkpoint), "--prompts", prompts[0], "--plan", "growing", "-m", "40"]
    values = json.loads(output(capsys, [*arguments, "--json"]))
    assert values["passed"] and values["identical"] == 4 and values["sampled_tokens"] == 160
    assert main([*arguments, "--temp", "0"]) == 1
    assert "--temp 0 leaves nothing to draw" in capsys.readouterr().err
    from mtpd_mlx.decoding import token_rules as rules

    monkeypatch.setattr(rules, "leading", lambda matches: mx.array(min(1, matches.size), mx.int32))
    text = output(capsys, [*arguments, "--greedy-only"], 1)
    assert "NOT a near-tie" in text and "FAILED" in text


def test_chat_keeps_the_cache_and_shows_drafts(
    checkpoint: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    arguments = ["chat", str(checkpoint), "--plan", "fixed", "-m", "24", "--show-drafts"]
    shown = []
    for extra in ([], ["--plain"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("abcd\nefgh\nq\n"))
        text = output(capsys, [*arguments[: None if not extra else -1], *extra])
        answers = [line for line in text.replace("\033[32m", "").replace("\033[0m", "").splitlines() if "tokens/s" not in line]
        shown.append((text, answers[1:]))
    assert shown[0][1] == shown[1][1] and "\033[32m" in shown[0][0] and "tau" in shown[0][0]
    assert "\033[32m" not in shown[1][0]


def test_chat_forgets_what_it_could_not_answer(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\udcffb\nabc\nq\n"))
    text = output(capsys, ["chat", str(checkpoint), "-m", "4", "--plan", "growing"])
    assert text.count("error: text: got U+DCFF") == 1 and text.count("[4 tokens") == 1


def test_doctor(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtpd_mlx.commands import doctor

    monkeypatch.setattr(doctor, "gigaflops", lambda mx, kind: 100.0)
    main(["doctor", "--json"])
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {"device", "mlx", "mlx-lm", "memory", "problems"} <= values.keys()
    assert values["computes in"].startswith("float32" if values["device"].endswith("(cpu)") else "the type")
    monkeypatch.setattr(doctor, "gigaflops", lambda mx, kind: 1.0)
    text = output(capsys, ["doctor"], 1)
    assert "fix: float32 products below 30 GFLOP/s" in text or "GPU" in values["device"]


def test_doctor_reports_what_can_be_sent(
    checkpoint: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtpd_mlx.commands import doctor

    monkeypatch.setattr(doctor, "gigaflops", lambda mx, kind: 100.0)
    monkeypatch.setattr(doctor, "TOKENS", 6)
    monkeypatch.setattr(doctor, "PROMPTS", 1)
    main(["doctor", "--report", "--heads", str(checkpoint)])
    lines = capsys.readouterr().out.splitlines()
    cells = dict(tuple(cell.strip() for cell in line.strip("| ").split(" | ", 1)) for line in lines[2:])
    assert {"device", "mlx", "memory", "to fix", "mlx_lm plain", "mtpd with heads", "tau"} <= cells.keys()
    assert all(line.count("|") == 3 and str(checkpoint.parent) not in line for line in lines)
    assert cells["texts equal to mlx_lm's"] == "plain 100%, mtpd 100%"


@pytest.mark.parametrize(
    ("arguments", "flag"), [("--heads x", "--heads"), ("--report --model x", "--model"), ("--report --json", "--report")]
)
def test_doctor_refuses_options_without_effect(arguments: str, flag: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", *arguments.split()]) == 1
    assert capsys.readouterr().err.startswith(f"mtpd doctor: error: {flag}: ")


def test_fuzz_tool_runs() -> None:
    done = tool("fuzz_decoding", "--rounds", 60, "--models", 2)
    assert done.returncode == 0, done.stderr
    assert "identical to plain decoding" in done.stdout
