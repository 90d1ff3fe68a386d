"""The forms of requests and answers, one module an API. Each reads a body into a Request and the Reply that goes with it."""
