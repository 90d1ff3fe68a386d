"""The report renders from a small dictionary, holds its figures, and fetches nothing."""

import json
from pathlib import Path

from mtpd_mlx.report import write_report


def arm(tau: float, depth: int) -> dict:
    return {
        "car": [0.5] * depth,
        "ar": [0.9] * depth,
        "tau": tau,
        "steps": 3,
        "seconds": 1.0,
        "distinct4": 0.9,
        "novel": {"tau": tau, "car": [0.5] * depth},
    }


def test_report_files(tmp_path: Path) -> None:
    report = {
        "arms": {"ce_short": arm(1.2345, 2), "mtpd": arm(2.5, 2), "mtpd_extended": arm(3.0, 4)},
        "base": {"valid_loss": 1.0, "distinct4": 0.9},
        "parity": {"tokens_equal": True, "tokens": 2000, "prompts": 40, "max_logit_diff": 1e-5},
        "speed": {
            "mlx_plain": 10.0,
            "mlx_mtpd": 20.0,
            "onnx_plain": 100.0,
            "onnx_mtpd": 150.0,
            "mlx_num_draft_tokens": 2,
            "onnx_num_draft_tokens": 4,
        },
        "samples": [{"prompt": "a <b>", "pieces": [{"text": "x<y", "kind": "draft"}, {"text": "z", "kind": "main"}]}],
        "versions": {"mlx": "1"},
        "machine": {"cores": 2},
    }
    curves = {
        "ce_short": [{"iter": 1, "tau": 1.0, "loss": 3.0}, {"iter": 2, "tau": 1.1, "loss": 2.0}],
        "mtpd_short": [{"iter": 1, "tau": 1.0, "loss": 3.0}],
    }
    write_report(report, curves, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    page = (tmp_path / "report.html").read_text()
    assert "1.234" in page and "1.50x" in page and "x&lt;y" in page and page.count("<svg") == 4
    body = page.split("</style>")[1]
    assert "src=" not in body and "<script" not in body and "<link" not in body
