"""`look`: a hub repository as inspection sees it. Small files are fetched; of weights, only headers.
Called by `mtpd inspect`."""

from pathlib import Path
from typing import Any

from mtpd_mlx.files.hub_ids import split_revision
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.hub.messages import explain, need_package, unreachable
from mtpd_mlx.hub.pull import cached
from mtpd_mlx.inspection.folder_view import MAX_JSON_BYTES, LocalView, View


def look(name: str, revision: str | None = None) -> View:
    """What the hub has under an id, or, where it cannot be reached, what the local cache holds. ValueError in one line."""
    need_package(name)
    from huggingface_hub import HfApi

    name, revision = split_revision(name, revision)
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except Exception as error:  # the hub client raises many kinds, and those of the HTTP library under it
        if unreachable(error):
            return LocalView(cached(name, revision, error), name)
        raise explain(error, name, revision) from None
    return HubView(name, revision, {file.rfilename: file.size or 0 for file in info.siblings or []})


class HubView:
    """ValueError in one line where the hub refuses."""

    def __init__(self, name: str, revision: str | None, files: dict[str, int]):
        self.name, self._revision, self._files = name, revision, files

    def _call(self, method: str, *arguments: Any) -> Any:
        from huggingface_hub import HfApi

        try:
            return getattr(HfApi(), method)(self.name, *arguments, revision=self._revision)
        except Exception as error:  # as above
            raise explain(error, self.name, self._revision) from None

    def files(self) -> dict[str, int]:
        return self._files

    def json(self, name: str) -> dict[str, Any]:
        if self._files.get(name, 0) > MAX_JSON_BYTES:
            raise ValueError(f"{self.name}/{name}: {self._files[name]} bytes, expected at most {MAX_JSON_BYTES}")
        return read_json_object(Path(self._call("hf_hub_download", name)), f"{self.name}/{name}", MAX_JSON_BYTES)

    def table(self, name: str) -> dict[str, Any]:
        metadata = self._call("parse_safetensors_file_metadata", name)
        return {
            n: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": list(t.data_offsets)}
            for n, t in metadata.tensors.items()
        }
