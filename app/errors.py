"""Every error the service answers with; `app.api.errors` gives each its HTTP status. `DeviceError` ends it instead.

* ServiceError
  x MalformedBody       the body is empty, broken, or holds no image or several
  x UnknownModel        no model of that name is served
  x ResultExpired       no such result: never there, deleted, or too old
  x NotAcceptable       none of the representations we have is accepted
  x TooLarge            more bytes or pixels than the limit
  x UnsupportedImage    not an image format that we read
    + UnsupportedEncoding the body is compressed once more
  x InvalidParameter    a parameter that the image or the result makes invalid
  x Overloaded
    + QueueFull           no place in the queue
    + DeadlineUnreachable the predicted wait is longer than the time allowed, less a margin
  x InferenceFailed     the model raised on this image
  x NotReady            still loading, or shutting down
    + ModelNotLoaded      the model is known, but not on the device
  x LoadFailed          a model could not be loaded
  x Unauthorized        not the admin key
  x AdminDisabled       no admin key is set, so nobody has it
  x DeadlineExceeded    not done in the time allowed
  x OutOfMemory         the image does not fit the device, even alone
"""

from __future__ import annotations

import traceback
from typing import Self


class DeviceError(Exception):
    """The device is not there, or has failed for good: no request's fault, and no request can be served."""


class ServiceError(Exception):
    """Base class.

    Attributes:
        code: stable name of the kind of error, the problem's `type`
        detail: one sentence fit for the client
        limit, actual: what was allowed and what came, where the error is about a limit
        retry_after: seconds until the same request would likely be taken
    """

    code = "internal-error"

    def __init__(
        self,
        detail: str,
        *,
        limit: float | None = None,
        actual: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.limit = limit
        self.actual = actual
        self.retry_after = retry_after

    def because(self, cause: BaseException) -> Self:
        """Set the error's cause, its traceback turned into text for the log; returns the error.

        A real traceback would keep the frames alive, and with them tensors and the error itself.
        """
        cause.add_note("".join(traceback.format_exception(cause)).rstrip())
        cause.__traceback__ = cause.__context__ = cause.__cause__ = None
        self.__cause__ = cause
        return self


class MalformedBody(ServiceError):
    code = "malformed-body"


class UnknownModel(ServiceError):
    code = "unknown-model"


class ResultExpired(ServiceError):
    code = "result-expired"


class NotAcceptable(ServiceError):
    code = "not-acceptable"


class TooLarge(ServiceError):
    code = "too-large"


class UnsupportedImage(ServiceError):
    code = "unsupported-image"


class UnsupportedEncoding(UnsupportedImage):
    """Of the body, by Content-Encoding."""


class InvalidParameter(ServiceError):
    code = "invalid-parameter"


class Overloaded(ServiceError):
    """Refused at the door: come back after `retry_after` seconds."""


class QueueFull(Overloaded):
    code = "queue-full"


class DeadlineUnreachable(Overloaded):
    code = "deadline-unreachable"


class InferenceFailed(ServiceError):
    code = "inference-failed"


class NotReady(ServiceError):
    code = "not-ready"

    def __init__(self, detail: str, *, retry_after: float | None = 1.0) -> None:
        super().__init__(detail, retry_after=retry_after)


class ModelNotLoaded(NotReady):
    code = "model-not-loaded"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after=None)  # only somebody's wish brings it back


class LoadFailed(ServiceError):
    code = "load-failed"


class Unauthorized(ServiceError):
    code = "unauthorized"


class AdminDisabled(ServiceError):
    code = "admin-disabled"


class DeadlineExceeded(ServiceError):
    code = "deadline-exceeded"


class OutOfMemory(ServiceError):
    code = "out-of-memory"
