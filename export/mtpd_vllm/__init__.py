"""`register`: a plug-in that lets vLLM draft with our heads (`mtpd export-heads --format vllm`).
Called by vLLM in each of its processes (entry point vllm.general_plugins)."""


def register() -> None:
    """Makes the architecture and the config.json of heads known. Nothing is loaded before a model asks for it."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from mtpd_vllm.config import ARCHITECTURE, HeadsConfig

    AutoConfig.register(HeadsConfig.model_type, HeadsConfig, exist_ok=True)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "mtpd_vllm.heads:MTPDHeads")
