"""The forms of requests and answers, one module per API. Each reads a body into a Request and its Reply.
Called by serving/app.py."""
