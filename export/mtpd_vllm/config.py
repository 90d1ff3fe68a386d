"""config.json of a folder of heads, as a configuration that vLLM can build the base's blocks from.
Called by vLLM through `register`."""

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from mtpd_vllm.checks import BASE

ARCHITECTURE = "MTPDHeads"


class HeadsConfig(PretrainedConfig):
    """Stands for the model_type in the file alone: what it makes is the base's own configuration, with that model_type."""

    model_type = "mtp"  # vLLM takes this one for speculative heads

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The base's configuration (its defaults and checks included) with num_nextn_predict_layers, n_predict and
        architectures of the heads. ValueError where the file does not name the base's family."""
        base = config_dict.get(BASE)
        kind = base.get("model_type") if isinstance(base, dict) else None
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            raise ValueError(f"config.json: {BASE}: got model_type {kind!r}, expected that of the heads' base")
        made = CONFIG_MAPPING[kind].from_dict(config_dict | {"model_type": kind}, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        config.__dict__["model_type"] = cls.model_type  # of this object alone, as vLLM's own rewrites do it
        return made
