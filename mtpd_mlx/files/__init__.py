"""The disk: files that are replaced whole, groups of files that change together, safetensors, hub ids. numpy alone."""
