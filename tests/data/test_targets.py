"""What counts as a target: answers where a template's prompt opens a thought, rows without any, and the line that says so."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import error_line
from tiny import write_base, write_tokenizer

from mtpd_mlx.cli import main
from mtpd_mlx.data.counts import Counts, check, count, describe, total
from mtpd_mlx.data.dataset import PackedDataset, load_dataset, load_text
from mtpd_mlx.data.packing import target_masks
from mtpd_mlx.options.train import DataConfig
from mtpd_mlx.text.tokenizer import Tokenizer

THOUGHTFUL = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:<think>{% endif %}"
)


def thoughtful(folder: Path) -> Tokenizer:
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(THOUGHTFUL)
    return Tokenizer.from_folder(folder)


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_prompt_ends_where_it_parts_from_the_conversation(tmp_path: Path) -> None:
    tokenizer = thoughtful(tmp_path)
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
    rows: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "hi", "completion": "yes"}, "yes;"),
        ({"messages": [user, answer]}, "yes;"),
        ({"prompt": "hi", "completion": "<thin"}, ";"),
        ({"messages": [user, answer, user]}, "u:hi;"),
        ({"messages": [answer]}, "a:yes;"),
    ]
    for row, targets in rows:
        file = write(tmp_path / "a.jsonl", [row])
        batch = load_text(str(file), DataConfig(max_seq_length=32, mask_prompt=True, pack=False), tokenizer).rows
        assert tokenizer.decode(batch.tokens[batch.loss_mask].tolist()) == targets, row


PLAIN = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
WITH_TOOLS = "{% for t in tools %}[{{ t.name }}]{% endfor %}" + PLAIN


def test_masks_of_prompts_as_mlx_lm_has_them(tmp_path: Path) -> None:
    """Where the template's prompt is a beginning of the conversation."""
    datasets = pytest.importorskip("mlx_lm.tuner.datasets")
    from mlx_lm.tokenizer_utils import load

    write_tokenizer(tmp_path)
    named = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": WITH_TOOLS}]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = load(tmp_path), Tokenizer.from_folder(tmp_path)
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
    pair, tools = {"prompt": "a", "completion": "b"}, {"tools": [{"name": "abc"}]}
    conversations = [{"messages": m} for m in ([user, answer], [user, answer, user], [user, answer, user, answer])]
    for row in [*conversations, conversations[0] | tools, pair, pair | tools]:
        file = write(tmp_path / "a.jsonl", [row])
        batch = load_text(str(file), DataConfig(max_seq_length=64, mask_prompt=True, pack=False), ours).rows
        ids, offset = datasets.create_dataset([row], theirs, DataConfig(mask_prompt=True)).process(row)
        assert batch.tokens[0, : len(ids)].tolist() == ids and int(batch.segments.sum()) == len(ids)
        assert batch.loss_mask[0, : len(ids)].tolist() == [i >= offset for i in range(len(ids))]


def test_counts_of_a_data_set(tmp_path: Path) -> None:
    tokenizer = thoughtful(tmp_path)
    rows = [{"prompt": "x" * n, "completion": "yes"} for n in (1, 2, 9, 30)]
    file = write(tmp_path / "a.jsonl", rows)
    cfg = DataConfig((str(file),), max_seq_length=12, mask_prompt=True, pack=False, valid_share=0.3)
    whole = load_text(str(file), cfg, tokenizer)
    assert whole.counts() == Counts(rows=4, tokens=10 + 11 + 12 + 12, targets=4 + 4, drafted=4 + 4, cut=2, empty=2)
    splits = load_dataset(cfg, tokenizer)
    assert isinstance(splits.train, PackedDataset) and splits.valid is not None
    assert total([splits.train.counts(), splits.valid.counts()]) == whole.counts()
    packed = load_text(str(file), DataConfig(max_seq_length=12), tokenizer)
    masks = target_masks(packed.rows, 1)
    assert packed.counts() == count(packed.rows, 0) and packed.counts().cut == 0
    assert packed.counts().targets == int(masks[0].sum()) and packed.counts().drafted == int(masks[1].sum())


def test_nothing_to_learn_is_refused() -> None:
    full = Counts(5, 50, 45, 40, 0, 0)
    check({"train": full, "valid": full}, "d", 16, True)
    for name in ("train", "valid"):
        splits = {"train": full, "valid": full} | {name: Counts(3, 48, 0, 0, 3, 3)}
        with pytest.raises(ValueError, match=rf"^data d: no targets for heads in the 3 {name} rows \(prompts are masked, 3 of"):
            check(splits, "d", 16, True)
    assert describe("train", full) == "train 5 rows, 50 tokens, 45 targets, 0 rows cut, 0 without targets"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = write_base(tmp_path / "base")
    (folder / "chat_template.jinja").write_text(THOUGHTFUL)
    return folder


def command(name: str, base: Path, data: Path, *more: str) -> list[str]:
    of_model = [] if name == "extend" else ["--model", str(base)]
    fixed = ["--data", str(data), "--no-pack", "--mask-prompt", "--batch-size", "2"]
    return [*name.split(), *of_model, *fixed, *more]


def test_every_command_says_what_it_counts(
    base: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """And a data set without targets is refused by each, before anything is written."""
    short = [{"prompt": "x" * (n % 3 + 1), "completion": "answer"} for n in range(12)]
    good = write(tmp_path / "good.jsonl", [{"prompt": "y" * 40, "completion": "ok"}, *short])
    none = write(tmp_path / "none.jsonl", [{"prompt": "y" * 40, "completion": "ok"}] * 12)
    steps = ["--iters", "2", "--val-batches", "1", "--max-seq-length", "16"]
    runs = {
        "train": ["--num-heads", "2", *steps],
        f"extend {tiny_checkpoint} --to 4": ["--model", str(base), *steps],
        f"refit {tiny_checkpoint}": steps,
        "cache": ["--max-seq-length", "16"],
    }
    for name, more in runs.items():
        line = {}
        for data in (good, none):
            out = tmp_path / f"{name.split()[0]}-{data.stem}"
            capsys.readouterr()
            words = command(name, base, data, "--out", str(out), *more)
            assert (main(words) in (0, 3)) == (data is good), name
            err = capsys.readouterr().err
            line[data] = [text for text in err.splitlines() if "data: " in text]
            assert len(line[data]) == 1, err
            if data is none:
                assert "no targets for heads" in err and "Traceback" not in err
                assert not (out / "mtp_config.json").exists() and not (out / "cache.json").exists()
        assert "train 12 rows" in line[good][0] and "1 rows cut, 1 without targets; valid 1 rows" in line[good][0]
        assert "11 rows cut, 11 without targets" in line[none][0]


def test_a_cache_says_it_again(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write(tmp_path / "good.jsonl", [{"prompt": "xy", "completion": "answer"}] * 12)
    out = tmp_path / "cache"
    assert main(command("cache", base, data, "--out", str(out), "--max-seq-length", "16")) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "data: " in line]
    train = ["train", "--cache", str(out), "--num-heads", "2", "--iters", "1", "--out", str(tmp_path / "heads")]
    assert main(train) in (0, 3)
    assert [line for line in capsys.readouterr().err.splitlines() if "data: " in line] == said
    index = json.loads((out / "cache.json").read_text())
    for split in index["splits"].values():
        for name in ("targets", "drafted", "cut", "empty"):
            del split[name]
    (out / "cache.json").write_text(json.dumps(index))
    assert main([*train, "--overwrite"]) in (0, 3), "a cache of an earlier version"
    index["splits"]["train"]["targets"] = "x"
    (out / "cache.json").write_text(json.dumps(index))
    assert main([*train, "--overwrite"]) == 1
    assert "splits.train.targets: got 'x'" in error_line(capsys)
