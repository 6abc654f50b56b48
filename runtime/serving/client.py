"""Send requests to the served model, and receive its responses as they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import SettingsError, VarEdgeError
from ..limits import shown
from ..optional import require
from .tensors import NAME, known_input

TYPES: dict[str, Any] = {"BYTES": object, "UINT64": np.uint64, "INT32": np.int32, "FP64": np.float64, "BOOL": bool}
TAKES = {"BYTES": "", "UINT64": "iu", "INT32": "iu", "FP64": "iuf", "BOOL": "b"}  # kinds of numpy's types
CONNECT_SECONDS = 10


class Client:
    """A connection to a server, for one thread and one request at a time.

    Raises SettingsError if no server answers, if it has no such model, or without tritonclient.
    """

    def __init__(self, url: str, model: str = NAME, timeout: float = 600) -> None:
        require("client", "tritonclient")
        import tritonclient.grpc as grpc

        self._grpc, self._url, self._model, self._timeout = grpc, url, model, timeout
        self._server = grpc.InferenceServerClient(url)
        self._arrived: SimpleQueue[tuple[Any, Any]] | None = None  # of the stream that is open, if there is one
        try:
            ready = self._server.is_model_ready(model, client_timeout=CONNECT_SECONDS)
        except grpc.InferenceServerException as error:
            self._server.close()
            raise SettingsError(f"{url}: no server answers ({error.message()}); start it or give another URL") from None
        if not ready:
            self._server.close()
            raise SettingsError(f"{url}: no model {model} is ready there; give the name that its repository has")

    def responses(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the outputs of each response, see `tensors.OUTPUTS`: with `previews` one for each scale, else one.

        Closing the iterator cancels the request. Raises SettingsError for an input that does not fit its tensor, see
        `tensors.INPUTS`; VarEdgeError for an error of the server, if a response takes longer than the timeout, and if
        the request was cancelled.
        """
        tensors = [self._tensor(name, value) for name, value in inputs.items()]
        if self._arrived is None:
            self._arrived = SimpleQueue()
            self._server.start_stream(partial(_put, self._arrived))
        arrived, ended = self._arrived, False
        try:
            self._server.async_stream_infer(self._model, tensors, enable_empty_final_response=True)
            while not ended:
                result, error = arrived.get(timeout=self._timeout)
                if error is not None:
                    raise VarEdgeError(error.message())
                response = result.get_response()
                ended = response.parameters["triton_final_response"].bool_param
                if not response.outputs:  # the server sends a last response without outputs for this only
                    raise VarEdgeError(f"{self._url}: the request was cancelled")
                yield {output.name: result.as_numpy(output.name) for output in response.outputs}
        except Empty:
            raise VarEdgeError(f"{self._url}: no response in {self._timeout:g} s; the request is cancelled") from None
        except self._grpc.InferenceServerException as error:
            raise VarEdgeError(f"{self._url}: {error.message()}") from None
        finally:
            if not ended:
                self.cancel()

    def cancel(self) -> None:
        """Cancel the request. Another thread may call this; the request's own then gets an error."""
        self._arrived = None
        self._server.stop_stream(cancel_requests=True)

    def result(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the outputs of the last response."""
        *_, last = self.responses(inputs)
        return last

    def executed(self) -> tuple[int, int]:
        """Return how many requests the server has drawn since it started, and in how many batches.

        Raises VarEdgeError if the server does not answer.
        """
        try:
            found = self._server.get_inference_statistics(self._model, as_json=True)["model_stats"][0]
        except self._grpc.InferenceServerException as error:
            raise VarEdgeError(f"{self._url}: {error.message()}") from None
        return int(found["inference_count"]), int(found["execution_count"])

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _tensor(self, name: str, value: Any) -> Any:
        array = input_array(name, value)
        tensor = self._grpc.InferInput(name, list(array.shape), known_input(name).datatype)
        tensor.set_data_from_numpy(array)
        return tensor


def input_array(name: str, value: Any) -> np.ndarray:
    """Return an input as an array of its shape and type; texts are UTF-8.

    Raises SettingsError if there is no such input, or if the value would have to be changed to fit.
    """
    wanted = known_input(name)
    with suppress(ValueError):  # of rows of several lengths, and of a text that UTF-8 cannot hold
        value = value.encode() if isinstance(value, str) else value
        if wanted.datatype == "BYTES" and isinstance(value, bytes):
            return np.array([[value]], object)
        found, kind = np.asarray(value), TYPES[wanted.datatype]
        if found.size == np.prod(wanted.dims) and found.dtype.kind in TAKES[wanted.datatype]:
            array: np.ndarray = found.astype(kind).reshape(1, *wanted.dims)
            if np.array_equal(array.ravel(), found.ravel(), equal_nan=True):
                return array
    raise SettingsError(f"{name}: expected {wanted.datatype} {list(wanted.dims)}, found {shown(value)}")


def _put(arrived: SimpleQueue[tuple[Any, Any]], result: Any, error: Any) -> None:
    arrived.put((result, error))
