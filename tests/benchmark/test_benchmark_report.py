"""What a benchmark makes of its runs: ratios of paired runs, shares of equal texts, means over sets. Which runs it makes."""

import json
from pathlib import Path
from typing import Any

import pytest

from mtpd_mlx.text.prompts import read_prompts
from tools.benchmark import prompts, runs
from tools.benchmark.arms import Arm, choose, named, numbers_of_drafts
from tools.benchmark.report import ALL, describe, summary

ARMS = [
    Arm("a plain", "a", "onnx", plain=True),
    Arm("a K=2", "a", "onnx"),
    Arm("peer", "peer", "genai", plain=True, greedy_only=True),
]


def run(arm: str, seconds: float, tokens: list[int], name: str = "s", prompt: int = 0, **more: Any) -> runs.Run:
    values = {"set": name, "prompt": prompt, "repeat": 0, "arm": arm, "session": 1, "tokens": tokens, "memory": 2_000_000}
    return values | {"prefill_seconds": seconds / 2, "decode_seconds": seconds, "others_cores": 0.0} | more


def test_ratios_are_of_paired_runs_and_texts_are_held_against_plain_decoding():
    """The second prompt is made while the machine is ten times slower: no ratio sees it, though the medians of times do."""
    made = [
        run("a plain", 1.0, [1, 2, 3, 4, 5]),
        run("a K=2", 0.5, [1, 2, 3, 4, 5], accepted=[2, 0], proposed=[2, 2], passes=2),
        run("peer", 2.0, [1, 2, 3, 4, 9]),
        run("a plain", 10.0, [1, 2, 3, 4, 5], prompt=1),
        run("a K=2", 5.0, [1, 2, 3, 4, 6], prompt=1, accepted=[1, 0, 0], proposed=[2, 2, 0], passes=4),
        run("peer", 20.0, [1, 2, 3, 4, 5], prompt=1),
    ]
    found = summary(made, ARMS)
    plain, ours, peer = (found["arms"][arm.name]["s"] for arm in ARMS)
    assert found["reference"] == "a plain"
    assert (plain["over_plain"], ours["over_plain"], peer["over_plain"]) == (1.0, 2.0, 1.0)
    assert (ours["over_reference"], peer["over_reference"]) == (2.0, 0.5)
    assert ours["tok_s"] == pytest.approx((8 + 0.8) / 2) and ours["ttft_over_reference"] == 0.5
    assert ours["tau"] == 1 + 3 / 4 and ours["tokens_per_pass"] == 8 / 6  # the round without drafts counts in the second alone
    assert plain["tau"] is None
    assert (plain["identical"], ours["identical"], peer["identical"]) == (1.0, 0.5, 0.5)
    against_peer = summary(made, ARMS, "peer")["arms"]
    assert against_peer["a K=2"]["s"]["over_reference"] == 4.0
    with pytest.raises(ValueError, match="--reference: got 'b', expected one of: a plain, a K=2, peer"):
        summary(made, ARMS, "b")


def test_runs_of_other_sessions_are_not_paired():
    made = [run("a plain", 1.0, [1, 2]), run("a K=2", 0.5, [1, 2], session=2)]
    found = summary(made, ARMS[:2])
    assert found["arms"]["a K=2"]["s"]["over_plain"] is None and found["sessions"] == 2
    assert found["arms"]["a K=2"]["s"]["identical"] == 1.0  # a text is a text


def test_all_sets_are_geometric_means_and_the_table_warns_of_a_busy_machine():
    made = [
        r
        for name, seconds in (("one", 0.5), ("two", 2.0))
        for r in (
            run("a plain", 1.0, [1, 2, 3], name),
            run("a K=2", seconds, [1, 2, 3], name, accepted=[1], proposed=[2], passes=1, others_cores=1.5),
        )
    ]
    found = summary(made, ARMS[:2])
    whole = found["arms"]["a K=2"][ALL]
    assert whole["over_plain"] == pytest.approx(1.0) and whole["tau"] == 2.0 and whole["runs"] == 2
    options = {"limit": 1, "max_tokens": 3, "repeats": 1, "sampling": {}, "num_threads": None}
    conditions = {"machine": "M", "versions": {"v": "1"}, "commit": "c", "time": "t", "load_average": [0.0], "options": options}
    text = describe(found, conditions)
    assert "the machine was not idle (others used 0.8 cores)" in text
    assert "a K=2" in text and "two" in text
    for r in made:
        r["others_cores"] = 0.0
    assert "warning" not in describe(summary(made, ARMS[:2]), conditions)


def test_the_set_of_edits_is_a_prompt_set():
    edits = read_prompts(Path("tools/benchmark/sets/edits.jsonl"))
    assert len(edits) == 16 == len({p.id for p in edits}) and all(len(p.text) > 300 for p in edits)


def test_every_arm_is_first_in_turn():
    keys = list(runs.order({"s": 2, "t": 1}, ["a", "b"], 2))
    assert len(keys) == len(set(keys)) == 12
    assert [arm for *_, arm in keys[:6]] == ["a", "b", "b", "a", "a", "b"]
    assert {name for name, *_ in keys[:4]} == {"s"}


def test_a_killed_benchmark_goes_on(tmp_path: Path):
    asked: list[tuple[str, int]] = []

    def arm(name: str) -> Any:
        def decode(prompt: list[int], max_tokens: int) -> runs.Run:
            asked.append((name, prompt[0]))
            if len(asked) == 7:
                raise KeyboardInterrupt
            return {"tokens": [max_tokens]}

        return decode

    sets, arms = {"s": [[10], [11], [12]]}, {"a": arm("a"), "b": arm("b")}
    with pytest.raises(KeyboardInterrupt):
        runs.measure(tmp_path, sets, arms, 99, 1)
    assert asked == [("a", 10)] * 2 + [("b", 10)] * 2 + [("b", 11), ("a", 11), ("a", 12)]  # each one's first text warms it up
    file = tmp_path / runs.FILE
    file.write_text(file.read_text() + '{"set": "s", "pro')  # and the kill came in the middle of a line
    made = runs.measure(tmp_path, sets, arms, 99, 1)
    assert [runs.key(r) for r in made] == list(runs.order({"s": 3}, ["a", "b"], 1))
    assert [r["session"] for r in made] == [1, 1, 1, 1, 2, 2]
    assert [json.loads(line) for line in file.read_text().splitlines()] == runs.read(tmp_path) == made
    count = len(asked)
    assert runs.measure(tmp_path, sets, arms, 99, 1) == made and len(asked) == count
    file.write_text("{\n" + file.read_text())
    with pytest.raises(ValueError, match=r"runs\.jsonl:1: not a JSON object"):
        runs.read(tmp_path)


def test_names_and_choices(tmp_path: Path):
    assert [numbers_of_drafts(n) for n in (0, 1, 3, 4, 16)] == [[], [1], [1, 2, 3], [1, 2, 4], [1, 2, 4, 8, 16]]
    assert [arm.name for arm in choose(ARMS, ["K=2"])] == ["a plain", "a K=2"]
    with pytest.raises(ValueError, match="--arms: got 'K=9', expected part of one of: a plain, a K=2, peer"):
        choose(ARMS, ["K=9"])
    assert named([tmp_path / "x"], "genai") == {tmp_path / "x": "genai"}
    assert list(named([tmp_path / "x", tmp_path / "y"], "genai").values()) == ["genai x", "genai y"]
    with pytest.raises(ValueError, match="two arms would be called 'x'"):
        named([tmp_path / "x", tmp_path / "y" / "x"])


def test_prompts_of_a_length_are_pieces_of_the_text(tmp_path: Path):
    from tiny import write_tokenizer

    from mtpd_mlx.text.tokenizer import Tokenizer

    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    file = tmp_path / "text.txt"
    file.write_text("abcdefg")
    sets = prompts.of_lengths([3, 5], file, tokenizer, 5, 2)
    assert [[tokenizer.decode(p) for p in each] for each in sets.values()] == [["abc", "def"], ["abcde", "fgabc"]]
    with pytest.raises(ValueError, match=r"--lengths: got 6, expected 1\.\.5"):
        prompts.of_lengths([6], file, tokenizer, 5, 1)
