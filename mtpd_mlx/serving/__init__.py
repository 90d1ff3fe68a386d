"""An HTTP server in the forms of OpenAI's API, over the decoder of either runtime. Needs starlette and uvicorn."""
