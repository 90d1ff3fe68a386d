"""`ApiError`: a client's mistake or a limit of the server, in the form of OpenAI's API.
Called by all of serving/."""

from typing import Any


class ApiError(Exception):
    """status: of HTTP; param: the request's field; code: a word that programs look at."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def kind(self) -> str:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(param: str, got: Any, expected: str) -> ApiError:
    """A field with a value that is none."""
    return ApiError(400, f"{param}: got {str(got)[:60]!r}, expected {expected}", param=param, code="invalid_value")


def unsupported(param: str, why: str = "this server does not support it") -> ApiError:
    return ApiError(400, f"{param}: {why}", param=param, code="unsupported_parameter")
