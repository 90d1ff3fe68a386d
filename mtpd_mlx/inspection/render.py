"""`render`: a description as lines for people.
Called by `mtpd inspect` and `mtpd pull`."""

from typing import Any


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} GB"


def number(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.1f}k"


TITLES = {
    "heads": "MTP heads",
    "exported heads": "MTP heads for other engines",
    "onnx": "an exported folder (mtpd-onnx)",
    "cache": "a distillation cache",
    "model": "a model",
    "adapter": "an adapter",
}


def render(found: dict[str, Any]) -> str:
    kinds = {"model": _model, "heads": _heads, "onnx": _onnx, "cache": _cache, "adapter": _adapter}
    kinds |= {"exported heads": _exported_heads}
    title = TITLES.get(found["kind"], "nothing that mtpd knows")
    lines = [f"{found['name']}: {title}, {found['files']} files, {size(found['bytes'])}"]
    return "\n".join(lines + ["  " + line for line in kinds.get(found["kind"], lambda f: [])(found)])


def _model(found: dict[str, Any]) -> list[str]:
    lines = [
        f"family {found['model_type']}, {number(found['parameters'])} parameters, {size(found['weight_bytes'])} of weights"
    ]
    stored = ", ".join(found["dtypes"])
    if quantised := found["quantization"]:
        bits = "/".join(map(str, quantised["bits"]))
        stored += f"; {quantised['matrices']} matrices in {bits} bits, groups of {quantised['group_size']}"
    lines.append(f"stored in {stored or 'nothing'}")
    lines.append(_shipped(found["shipped_heads"]))
    lines += [f"note: {remark}" for remark in found["remarks"]]
    lines += [f"objection: {objection}" for objection in found.get("objections", ())]
    if not found["supported"]:
        return [*lines, f"not supported: {found['why_not']}"]
    d, caches, needs = found["dims"], found["caches"], found["needs"]
    lines.append(
        f"{d['num_layers']} layers, hidden {d['hidden_size']}, {d['num_heads']} heads ({d['num_kv_heads']} key heads) of "
        f"{d['head_dim']}, vocabulary {d['vocab_size']}{' (tied)' if d['tied'] else ''}, context {d['context_length']}"
    )
    if "global_head_dim" in d:
        lines.append(f"in global layers {d['global_num_kv_heads']} key heads of {d['global_head_dim']}")
    if not found["float16"]:
        lines.append("hidden states exceed float16: --dtype float16 and --precision fp16 are refused, bfloat16 is for them")
    if "experts" in d:
        lines.append(f"{d['experts']} experts, {d['experts_per_token']} per token")
    windowed = f"; {caches['sliding_layers']} layers look back {caches['window']}" if caches["window"] else ""
    if caches["recurrent_layers"]:
        windowed += f"; {caches['recurrent_layers']} layers hold {size(caches['state_bytes'])} of state, however long the text"
    lines.append(f"caches: {size(caches['bytes_per_position'])} a position, all rewind{windowed}")
    plan = needs["plan"]
    lines.append(f"one MTP head: {number(needs['head_parameters'])} parameters")
    train = {name: size(count) for name, count in needs["train_heads_bytes"].items()}
    steps = f"steps of {plan['batch_size']} x {plan['tokens']} tokens"
    lines.append(f"to train {plan['num_heads']} heads of the frozen base with MTP-D, {steps}, at most about:")
    lines.append(
        f"  {train['cuda']} on an NVIDIA GPU, {train['metal']} on a Mac (never measured), both in bfloat16; {train['cpu']} on "
        "a CPU in float32"
    )
    decode = size(needs["decode_bytes"])
    positions = min(plan["positions"], d["context_length"])
    cpu = size(needs["decode_cpu_bytes"])
    lines.append(
        f"to decode {positions} positions with these heads: about {decode} on a GPU as stored, {cpu} on a CPU in float32"
    )
    return lines


def _shipped(shipped: dict[str, Any] | None) -> str:
    if shipped is None:
        return "no MTP heads of its own"
    if shipped["heads"] == 0:
        return f"config.json speaks of {shipped['announced']} MTP heads; among the weights there are none"
    fits = "mtpd import-heads reads them" if shipped["fits"] else f"not importable: {shipped['why_not']}"
    told = f" (config.json says {shipped['announced']})" if shipped["announced"] not in (0, shipped["heads"]) else ""
    return f"{shipped['heads']} MTP heads of its own{told} ({shipped['format']}): {fits}"


def _heads(found: dict[str, Any]) -> list[str]:
    drafts = f", drafting among {found['draft_vocab']} tokens" if found["draft_vocab"] else ""
    stored = f"{found['quantization']['bits']} bits" if found["quantization"] else ", ".join(found["dtypes"])
    return [
        f"{found['num_heads']} heads ({found['hidden_source']}{drafts}), {number(found['parameters'])} parameters, {stored}",
        f"of base {_named(found['base'])} ({found['base']['model_type']}, {found['base']['fingerprint'][:19]}...)",
        _measured(found["measured"]),
    ]


def _exported_heads(found: dict[str, Any]) -> list[str]:
    engine = "for the vLLM plug-in" if found["engine"] else "in the names that shipped heads have"
    return [
        f"{found['num_heads']} heads {engine}, {number(found['parameters'])} parameters, {', '.join(found['dtypes'])}",
        f"of base {_named(found['base'])} ({found['base']['model_type']}, {found['base']['fingerprint'][:19]}...), not in it",
        "mtpd import-heads reads them",
    ]


def _onnx(found: dict[str, Any]) -> list[str]:
    base = found["base"] or {}
    return [
        f"layout {found['layout']}, {found['precision']} weights, {found['activations']} activations",
        f"{found['num_heads']} draft tokens, {found['capacity']} positions",
        f"of base {_named(base)} ({base.get('model_type')})",
        _measured(found["measured"]),
    ]


def _cache(found: dict[str, Any]) -> list[str]:
    base = found["base"]
    lines = [
        f"of base {_named(base)} ({base.get('model_type')}, {str(base.get('fingerprint'))[:19]}...)",
        f"per position: hidden state ({found['dtype']}, {found['hidden']}), the {found['top_n']} best logits "
        f"({found['logits_dtype']}); rows of {found['max_seq_length']} tokens",
    ]
    for name, split in found["splits"].items():
        done = "" if split["rows_done"] == split["rows"] else f", {split['rows_done']} of them finished"
        lines.append(
            f"{name}: {split['rows']} rows{done}, {split['tokens']} tokens, {split['shards']} shards, {size(split['bytes'])}"
        )
    resume = "not complete: mtpd cache --resume --out " + found["name"]
    return [*lines, "complete: mtpd train --cache trains from it" if found["complete"] else resume]


def _adapter(found: dict[str, Any]) -> list[str]:
    base = f"made for {found['base']}" if found["base"] else "its base is not recorded"
    if not found["supported"]:
        return [base, f"not supported: {found['why_not']}"]
    kind = found["fine_tune_type"]
    if kind != "full":
        where = ", ".join(found["keys"]) if found["keys"] else "mlx-lm's own choice"
        kind = f"{kind}, rank {found['rank']}, scale {found['scale']}, last {found['num_layers']} layers ({where})"
    stored = ", ".join(found["dtypes"])
    return [kind, f"{number(found['parameters'])} parameters, {size(found['weight_bytes'])} ({stored})", base]


def _named(base: dict[str, Any]) -> str:
    revision, adapter = base.get("revision"), base.get("adapter")
    return f"{base.get('id')}{f'@{revision}' if revision else ''}{f' with adapter {adapter}' if adapter else ''}"


def _measured(measured: dict[str, Any] | None) -> str:
    if not measured or "car" not in measured:
        return "acceptance: not recorded"
    return f"acceptance on validation text: CAR {' '.join(f'{c:.3f}' for c in measured['car'])}, tau {measured['tau']:.3f}"
