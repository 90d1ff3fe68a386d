"""An HTTP server in OpenAI's and Anthropic's forms over the decoder of either runtime. Needs starlette and uvicorn.
Called by `mtpd serve` and `mtpd-onnx serve`."""
