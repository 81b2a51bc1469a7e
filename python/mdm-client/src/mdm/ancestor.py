"""messageDisMiddle's client, for programs that were written for it: only their import line has to change.

    from mdm.ancestor import MessageClient

    client = MessageClient(port=5555, port_out=5556)
    entities = client.message_handle(sentences, {"model_proxy_path": "ner_model.proxy", "c_tag": "BD"})
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from .client import Client
from .closing import Closes
from .errors import InvalidArgument
from .results import Result


class MessageClient(Closes):
    """Sends rows with their parameters, and gives a list with what the model says of each row.

    ``timeout`` is in milliseconds, as the ancestor has it; -1 is none. What the ancestor's clients knew and this one has no
    use for is taken and passed over. Unlike its, an error is an exception, and no list of empty strings.
    """

    def __init__(
        self,
        ip: str = "localhost",
        port: int = 5555,
        port_out: Optional[int] = None,
        timeout: float = -1,
        **unused: Any,
    ) -> None:
        host = f"[{ip}]" if ":" in ip else ip
        self._client = Client(f"{host}:{port}", timeout=timeout / 1000 if timeout > 0 else None, port_out=port_out)
        del unused

    def message_handle(self, rows: Union[Sequence[Any], Any], para_dict: Optional[Mapping[str, Any]] = None) -> List[Any]:
        """Runs the rows through the model that ``para_dict["model_proxy_path"]`` names, and gives a list as long as they are.

        A model of several outputs gives a dict for each row.
        """
        if para_dict is None or "model_proxy_path" not in para_dict:
            raise InvalidArgument("para_dict has no 'model_proxy_path', which names the model's proxy")
        if len(rows) == 0:
            return []
        return _by_row(self._client.infer(rows, params=dict(para_dict)))

    def close(self) -> None:
        """Ends the client's connections."""
        self._client.close()


def _by_row(result: Result) -> List[Any]:
    columns: Dict[str, List[Any]] = {
        name: value if isinstance(value, list) else value.tolist() for name, value in result.items()
    }
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, row)) for row in zip(*columns.values())]
