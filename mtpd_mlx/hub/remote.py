"""A hub repository as inspection sees it: small files are fetched, of weights the headers alone."""

from pathlib import Path
from typing import Any

from mtpd_mlx.hub.messages import explain
from mtpd_mlx.hub.pull import is_hub_id, split_revision
from mtpd_mlx.inspection.view import MAX_JSON_BYTES, parse_object

__all__ = ["HubView", "is_hub_id"]


class HubView:
    """ValueError in one line where the hub refuses or is not there."""

    def __init__(self, name: str, revision: str | None = None):
        self.name, self.revision = split_revision(name, revision)
        self._files: dict[str, int] | None = None

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        from huggingface_hub import HfApi

        try:
            return getattr(HfApi(), method)(self.name, *arguments, revision=self.revision, **options)
        except Exception as error:  # the hub client raises many kinds, and those of the HTTP library under it
            raise ValueError(explain(error, self.name, self.revision)) from None

    def files(self) -> dict[str, int]:
        if self._files is None:
            info = self._call("model_info", files_metadata=True)
            self._files = {file.rfilename: file.size or 0 for file in info.siblings or []}
        return self._files

    def json(self, name: str) -> dict[str, Any]:
        if self.files().get(name, 0) > MAX_JSON_BYTES:
            raise ValueError(f"{self.name}/{name}: {self.files()[name]} bytes, expected at most {MAX_JSON_BYTES}")
        return parse_object(Path(self._call("hf_hub_download", name)).read_bytes(), f"{self.name}/{name}")

    def table(self, name: str) -> dict[str, Any]:
        metadata = self._call("parse_safetensors_file_metadata", name)
        return {
            n: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": list(t.data_offsets)}
            for n, t in metadata.tensors.items()
        }
