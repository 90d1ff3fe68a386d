"""transformers' own MTP decoding (use_mtp) with the heads that `mtpd export-heads` writes: it accepts them, its drafts are ours
and its text is the base's. Skipped where torch or a transformers with use_mtp is not installed.

Its MTP decoding is generic: any model whose class names the tensors it may ignore and whose config gives num_mtp_layers.
"""

from pathlib import Path

import numpy as np
import pytest
from family_models import build, train_checkpoint

from mtpd_mlx.checkpoints.shipped.write import export_heads
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.rounds import StepBackend

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
modeling = pytest.importorskip("transformers.modeling_layers")
if not hasattr(modeling, "MtpModel"):
    pytest.skip("this transformers has no MTP decoding", allow_module_level=True)


@pytest.mark.parametrize("name", ["llama2", "llama3", "mimo-as-qwen2", "qwen3-moe-raw", "mixtral", "gemma2", "granite"])
def test_transformers_decodes_with_what_we_write(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    reference = build(name if name != "mimo-as-qwen2" else "qwen2", tmp_path / "base")
    checkpoint = train_checkpoint(reference, tmp_path / "heads")
    export_heads(checkpoint, reference.folder, tmp_path / "model", "nextn", with_base=True)
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.num_mtp_layers == 2  # as config.json has it
    kind = {"dtype": torch.float32, "attn_implementation": "eager"}
    layers = config.num_hidden_layers
    model_class = type(AutoModelForCausalLM.from_config(config))
    patterns = [rf"model\.layers\.{layers + k}\." for k in range(2)]
    monkeypatch.setattr(model_class, "_keys_to_ignore_on_load_unexpected", patterns)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", config=config, **kind).eval()
    base, heads, _ = load_checkpoint(checkpoint)
    ours = MLXModel(base, heads)
    prompt = reference.tokens[:9]
    first = ours.prefill(prompt)
    drafts = ours.draft(first)
    mtp = modeling.MtpModel.from_pretrained(model)
    with torch.no_grad():
        inside = model.model(torch.tensor([prompt]), output_hidden_states=True)
        from transformers.cache_utils import MtpCache

        theirs, _, _ = mtp(
            input_ids=torch.tensor([[*prompt[1:], first]]),
            last_hidden_states=inside.last_hidden_state,
            attention_mask=None,
            position_ids=torch.arange(1, len(prompt) + 1)[None],
            mtp_cache=MtpCache(config=config.get_mtp_config()),
        )
        text = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, use_mtp=True, eos_token_id=None)
    assert theirs[0].tolist() == drafts
    plain = [t for c in generate(StepBackend(MLXModel(base, None)), prompt, max_tokens=24) for t in c.tokens]
    assert np.array_equal(text[0, len(prompt) :].tolist(), plain)
