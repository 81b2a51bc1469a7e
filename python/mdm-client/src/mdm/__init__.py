"""The client of MDM, the message distribution middleware: sends rows to a model server, and gets results.

    import mdm

    client = mdm.Client("localhost:5555", timeout=30)
    result = client.infer(images, model="digits")
    labels = result["label"]

A client is shared by any number of threads, and has no thread of its own. Each call borrows a session; what is in flight
when a session is lost fails at once with ``mdm.Unavailable``, and the next call opens another.
"""

from .client import Client
from .errors import (
    Cancelled,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from .notebook import Model, Models, Status
from .results import Failed, Part, Result, Stats
from .stream import Parts
from .tickets import Ticket
from .values import BF16

__version__ = "0.1.0"

__all__ = [
    "BF16",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Error",
    "Failed",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "Model",
    "Models",
    "NotFound",
    "Part",
    "Parts",
    "PermissionDenied",
    "ResourceExhausted",
    "Result",
    "Stats",
    "Status",
    "Ticket",
    "Unavailable",
]
