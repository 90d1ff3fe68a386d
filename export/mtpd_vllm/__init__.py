"""`register`: a plug-in that lets vLLM draft with our heads (`mtpd export-heads --format vllm`).
Called by vLLM in each of its processes (entry point vllm.general_plugins)."""


def register() -> None:
    """Makes the architecture and the config.json of heads known. A vLLM that is too old is named in one line, and serves models
    without heads as before. Nothing is loaded before a model asks for it."""
    import vllm
    from vllm.logger import init_logger

    from mtpd_vllm.checks import is_untested, version_problem

    log = init_logger("vllm.mtpd_vllm")  # below vLLM's own, whose handlers show it
    if (problem := version_problem(vllm.__version__)) is not None:
        log.warning(problem)
        return
    if is_untested(vllm.__version__):
        log.info("mtpd_vllm: never run with vLLM %s", vllm.__version__)

    from transformers import AutoConfig
    from vllm import ModelRegistry

    from mtpd_vllm.config import ARCHITECTURE, HeadsConfig

    AutoConfig.register(HeadsConfig.model_type, HeadsConfig, exist_ok=True)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "mtpd_vllm.heads:MTPDHeads")
