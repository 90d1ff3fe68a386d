"""The stored references against the transformers that is installed; skipped where torch or transformers is not."""

from typing import Any

import numpy as np
import pytest
from family_models import TOLERANCE, Reference

pytestmark = pytest.mark.slow  # it loads torch


def test_transformers_still_agrees(reference: Reference) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if reference.config["model_type"] == "mimo":
        pytest.skip("transformers has no class of this name")
    kind: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if "quantization_config" in reference.config:
        kind["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    image = "vision_config" in reference.config
    auto_class = transformers.AutoModelForImageTextToText if image else transformers.AutoModelForCausalLM
    model = auto_class.from_pretrained(reference.folder, **kind).eval()
    with torch.no_grad():
        logits = model(torch.tensor([reference.tokens])).logits[0].numpy()
    np.testing.assert_allclose(logits, reference.logits, rtol=0, atol=TOLERANCE)
