"""Sampling in ONNX operators against the rule in numpy, on the same random numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from mtpd_onnx.dims import read_dims
from mtpd_onnx.graphs.builder import Graph, Spec, sampler_inputs
from mtpd_onnx.graphs.cuda_modules import largest_of_blocks, likeliest_of_blocks
from mtpd_onnx.graphs.sampled_rows import RowSampler
from mtpd_onnx.graphs.sampling import CONTEXT, F32, I64, LIKELY, SETTINGS, Sampler, running_sum
from mtpd_onnx.runtime.sampling_state import settings
from tiny import LLAMA, write_base

from mtpd_mlx.speculative.sampling import ACCEPT, DRAFT, REPLACE, Sampling, draft_floor, draw, probabilities, residual, uniforms

ROWS, POSITIONS = 4, 200
OPTIONS = [
    Sampling(temp=1.0),
    Sampling(temp=0.7, top_p=0.9, repetition_penalty=1.2),
    Sampling(temp=1.3, min_p=0.1),
    Sampling(temp=1.0, top_k=5),
    Sampling(temp=0.6, top_p=0.95, top_k=20, min_p=0.02, repetition_penalty=1.1),
    Sampling(temp=0.0, repetition_penalty=1.5),
]


def session_of(vocab: int, folder: Path) -> ort.InferenceSession:
    """A graph whose outputs are the parts of the rule."""
    dims = read_dims(write_base(folder / "base", LLAMA | {"vocab_size": max(vocab, 97)}))
    graph = Graph(Spec(dims, 0, "postnorm", ir.DataType.FLOAT, 16), "sampler")
    op = graph.op
    logits = graph.input("logits", F32, ["n", vocab])
    contexts = graph.input("contexts", I64, ["n", CONTEXT])
    p, q = graph.input("p", F32, ["n", vocab]), graph.input("q", F32, ["n", vocab])
    drafts, positions = graph.input("drafts", I64, ["n"]), graph.input("positions", I64, ["n"])
    sampler = sampler_inputs(graph)
    sampler.vocab = vocab
    first = op.Slice(positions, [0], [1])
    p0, q0 = op.Slice(p, [0], [1]), op.Slice(q, [0], [1])
    graph.output(sampler.of(op, logits, contexts), "distribution", F32, ["n", vocab])
    graph.output(running_sum(op, p, vocab), "sums", F32, ["n", vocab])
    graph.output(sampler.draft(op, q0, first), "draft", I64, [1])
    graph.output(sampler.replace(op, p0, q0, first), "replaced", I64, [1])
    graph.output(sampler.accepts(op, p, q, drafts, positions), "accepts", ir.DataType.BOOL, ["n"])
    ir.save(graph.model(), folder / "sampler.onnx")
    return ort.InferenceSession(str(folder / "sampler.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("vocab", [2, 97, 1000])
def test_every_part_of_the_rule_is_that_of_numpy(vocab: int, tmp_path: Path) -> None:
    session = session_of(vocab, tmp_path)
    rng = np.random.default_rng(vocab)
    table = uniforms(POSITIONS, rng)
    for options in OPTIONS:
        if options.top_k > vocab:
            continue
        for position in range(0, POSITIONS - ROWS, 20):
            logits = (rng.normal(size=(ROWS, vocab)) * 2).astype(np.float32)
            contexts = rng.integers(0, vocab, (ROWS, CONTEXT))
            p, q = (rng.dirichlet(np.full(vocab, 0.3), ROWS).astype(np.float32) for _ in range(2))
            drafts, positions = rng.integers(0, vocab, ROWS), np.arange(position, position + ROWS)
            inputs = {"logits": logits, "contexts": contexts, "p": p, "q": q, "drafts": drafts, "positions": positions}
            inputs |= {"uniforms": table, "settings": settings(options, vocab), "recent": contexts[0]}
            wanted = ["distribution", "sums", "draft", "replaced", "accepts"]
            distribution, sums, draft, replaced, accepts = session.run(wanted, inputs)
            np.testing.assert_allclose(distribution, probabilities(logits, options, contexts), atol=2e-6)
            np.testing.assert_allclose(sums, np.cumsum(p, axis=-1), atol=2e-6)
            assert draft[0] == draw(q[0], table[position, DRAFT])
            assert replaced[0] == draw(residual(p[0], q[0]), table[position, REPLACE])
            chosen = np.arange(ROWS), drafts
            assert accepts.tolist() == (table[positions, ACCEPT] * q[chosen] < p[chosen]).tolist()


def test_no_token_of_weight_zero_is_drawn_at_the_ends_of_the_random_numbers(tmp_path: Path) -> None:
    session = session_of(97, tmp_path)
    zeros = {i.name: np.zeros([ROWS if isinstance(d, str) else d for d in i.shape], np.float32) for i in session.get_inputs()}
    zeros |= {n: np.zeros((ROWS, CONTEXT)[: 1 + (n == "contexts")], np.int64) for n in ("contexts", "drafts")}
    weights = np.zeros((ROWS, 97), np.float32)
    weights[:, [40, 41]] = [0.1, 0.2]
    for u, token in ((0.0, 40), (1 - 2**-23, 41)):
        table = np.full((POSITIONS, 3), u, np.float32)
        inputs = zeros | {
            "q": weights,
            "p": weights,
            "uniforms": table,
            "positions": np.arange(ROWS),
            "recent": np.zeros(CONTEXT, np.int64),
        }
        assert session.run(["draft"], inputs)[0].tolist() == [token]


@pytest.mark.parametrize("vocab", [97, 3000, 2048])
def test_on_cuda_drafts_need_no_sort(vocab: int, tmp_path: Path) -> None:
    """The main head's distribution stays what it is; that of drafts is near it where few tokens are likely."""
    dims = read_dims(write_base(tmp_path / "base", LLAMA | {"vocab_size": vocab}))
    graph = Graph(Spec(dims, 0, "postnorm", ir.DataType.FLOAT, 16), "drafts")
    op, logits, contexts = graph.op, graph.input("logits", F32, ["n", vocab]), graph.input("contexts", I64, ["n", CONTEXT])
    given = graph.input("settings", F32, [len(SETTINGS)])
    sampler = Sampler(given, vocab, logits, contexts, largest_of=largest_of_blocks, likeliest_of=likeliest_of_blocks)
    graph.output(sampler.of(op, logits, contexts), "main", F32, ["n", vocab])
    graph.output(sampler.of_drafts(op, logits, contexts), "drafts", F32, ["n", vocab])
    ir.save(graph.model(), tmp_path / "drafts.onnx")
    session = ort.InferenceSession(str(tmp_path / "drafts.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    fed, known = (rng.normal(size=(ROWS, vocab)) * 6).astype(np.float32), rng.integers(0, vocab, (ROWS, CONTEXT))
    for options in [o for o in MIXED if o.top_k <= vocab]:
        main, drafts = session.run(["main", "drafts"], {"logits": fed, "contexts": known, "settings": settings(options, vocab)})
        wanted = probabilities(fed, options, known)
        np.testing.assert_allclose(main, wanted, atol=2e-6)
        np.testing.assert_allclose(drafts.sum(-1), 1, atol=1e-5)
        only_top_k, floor = not (options.top_p or options.min_p) and options.kept <= LIKELY, draft_floor(options)
        assert np.minimum(drafts, wanted).sum(-1).min() > (0.99 if only_top_k else 0.5)
        if floor is not None:
            plain = probabilities(fed, replace(options, temp=1.0, top_p=0.0, min_p=0.0), known)
            assert ((drafts > 0) <= (plain >= 0.999 * floor * plain.max(-1, keepdims=True))).all()


MIXED = [
    *OPTIONS,
    Sampling(temp=0.8),
    Sampling(temp=1.5, top_p=0.97),
    Sampling(temp=0.7, top_k=2000),
    Sampling(temp=1.0, top_p=0.5),
]


@pytest.mark.parametrize("vocab", [97, 3000])
def test_rows_of_different_settings(vocab: int, tmp_path: Path) -> None:
    """3000: what is kept is found among the likeliest tokens, is all of them, or (flat logits) takes an order of all."""
    dims = read_dims(write_base(tmp_path / "base", LLAMA | {"vocab_size": vocab}))
    graph = Graph(Spec(dims, 0, "postnorm", ir.DataType.FLOAT, 16), "rows")
    op, rule = graph.op, RowSampler(graph, vocab)
    logits, contexts = graph.input("logits", F32, ["n", vocab]), graph.input("contexts", I64, ["n", CONTEXT])
    settings_in, u = graph.input("settings", F32, ["n", 5]), graph.input("u", F32, ["n"])
    p = rule.of(op, logits, contexts, settings_in)
    graph.output(p, "p", F32, ["n", vocab])
    graph.output(rule.draw(op, p, u), "drawn", I64, ["n"])
    ir.save(graph.model(), tmp_path / "rows.onnx")
    session = ort.InferenceSession(str(tmp_path / "rows.onnx"), providers=["CPUExecutionProvider"])
    rng, n = np.random.default_rng(vocab), len(MIXED)
    for spread in (0.05, 1.0, 4.0):
        rows = (rng.normal(size=(n, vocab)) * spread).astype(np.float32)
        before = rng.integers(0, vocab, (n, CONTEXT))
        uniform = uniforms(n, rng)[:, 0]
        table = np.stack([settings(options, vocab) for options in MIXED])
        got, drawn = session.run(None, {"logits": rows, "contexts": before, "settings": table, "u": uniform})
        for i, options in enumerate(MIXED):
            expected = probabilities(rows[i : i + 1], options, before[i : i + 1])[0]
            kept = int((expected > 0).sum())
            assert abs(int((got[i] > 0).sum()) - kept) <= (0 if kept < 1000 or kept == vocab else 2)  # sums in another order
            np.testing.assert_allclose(got[i], expected, atol=2e-4 if kept > 1000 else 1e-6)
            running = np.cumsum(got[i], dtype=np.float64)
            place = uniform[i] * running[-1]
            assert running[drawn[i]] >= place - 1e-5 and (drawn[i] == 0 or running[drawn[i] - 1] <= place + 1e-5)
            assert got[i][drawn[i]] > 0
