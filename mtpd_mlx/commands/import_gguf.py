"""`mtpd import-gguf`: a model folder made of a GGUF file. Needs no MLX.
Called by mtpd_mlx/cli.py."""

from mtpd_mlx.options.hub import ImportGgufOptions

OPTIONS = (ImportGgufOptions,)
EXAMPLES = ("mtpd import-gguf model-Q4_0.gguf --out model",)


def run(wanted: ImportGgufOptions) -> int:
    from mtpd_mlx.checkpoints.gguf.write import import_gguf

    file, out = wanted.file.expanduser(), wanted.out.expanduser()
    print(f"{wanted.out}: {import_gguf(file, out, wanted.dequantize, wanted.overwrite)}")
    return 0
