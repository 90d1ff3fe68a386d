"""`card`: the model card of heads or of an exported folder. It uses a description alone, so no path or token gets in.
Called by hub/push.py."""

from typing import Any


def card(found: dict[str, Any], repository: str, licence: str | None) -> str:
    """README.md of a description (inspection.describe) of kind heads or onnx, whose base is named as on the hub."""
    heads, base = found["kind"] == "heads", found["base"]["id"]
    front = ["---", "library_name: mtpd-mlx", f"base_model: {base}", "base_model_relation: adapter"]
    front += [f"license: {licence}"] if licence else []
    front += ["tags:", "- mtp", "- speculative-decoding", f"- {'mlx' if heads else 'onnx'}", "---", ""]
    title = repository.rpartition("/")[2]
    count = found["num_heads"]
    what = "MTP heads" if heads else f"MTP heads and base, exported for onnxruntime ({found['precision']})"
    lines = [f"# {title}", "", f"{count} {what} for `{base}`: the text is the base's own, several tokens at a time.", ""]
    lines += _acceptance(found.get("measured"))
    lines += _making(found, licence)
    return "\n".join([*front, *lines, *_commands(repository, heads)]) + "\n"


def _acceptance(measured: dict[str, Any] | None) -> list[str]:
    if not measured or "car" not in measured:
        return ["Acceptance: not measured.", ""]
    rows = ["| depth | CAR | AR |", "|---|---|---|"]
    ar = measured.get("ar") or [None] * len(measured["car"])
    for depth, (c, a) in enumerate(zip(measured["car"], ar, strict=True), start=1):
        rows.append(f"| {depth} | {c:.3f} | {'' if a is None else f'{a:.3f}'} |")
    tau = f"tau (tokens per pass of the base): {measured['tau']:.3f}"
    return ["## Acceptance", "", "On held-out validation text, teacher-forced.", "", *rows, "", tau, ""]


def _making(found: dict[str, Any], licence: str | None) -> list[str]:
    data, loss, reference = found.get("data") or {}, found.get("loss") or {}, found["base"]
    at = f", revision `{reference['revision']}`" if reference.get("revision") else ""
    lines = ["## Made from", "", f"- base: `{reference['id']}`{at}"]
    if reference.get("fingerprint"):
        lines.append(f"- fingerprint of the base: `{reference['fingerprint']}`; heads refuse another one")
    for other in reference.get("same_weights") or ():
        lines.append(f"- the same weights in another form: `{other}`")
    if loss.get("loss"):
        lines.append(f"- loss: {loss['loss']} (alpha {loss.get('alpha')}, beta {loss.get('beta')}, top-N {loss.get('top_n')})")
    if data.get("train_tokens"):
        lines.append(f"- data: {data['train_tokens']} training tokens (sha256 {str(data.get('train_sha256'))[:16]}...)")
    lines.append(f"- licence: {licence}" if licence else "- licence: that of the base and of the data applies")
    return [*lines, ""]


def _commands(repository: str, heads: bool) -> list[str]:
    where = "# in a checkout of the mtpd-mlx repository, which is not on PyPI:"
    if heads:
        commands = [where, 'pip install -e ".[mlx]"', f'mtpd generate {repository} -p "Once upon a time"']
    else:  # pulling needs huggingface_hub, which decoding does not
        commands = [where, 'pip install -e ".[onnx]" huggingface_hub', f"mtpd pull {repository} --out model"]
        commands.append('mtpd-onnx generate model -p "Once upon a time"')
    return ["## Run", "", "```", *commands, "```"]
