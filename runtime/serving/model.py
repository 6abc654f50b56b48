"""The model of Triton's Python backend. It only passes tensors on; `process.py` holds the pipeline."""

from __future__ import annotations

import json
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton

from ..errors import VarEdgeError
from .batches import Answer
from .process import ModelProcess
from .settings import Settings

ID = "id"  # of a request to the generate endpoint, which hands it over as a parameter


class TritonPythonModel:
    """One instance: one process with a pipeline, on one GPU or on the CPU."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle that config.pbtxt names. Raises TritonModelException with the line of the error."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        try:
            self._process = ModelProcess(Settings.of(parameters, Path(args["model_repository"]), gpu))
        except (VarEdgeError, EOFError) as error:
            raise triton.TritonModelException(str(error) or "the process of the model ended") from None

    def execute(self, requests: list[Any]) -> None:
        """Draw the requests that waited together. Returns when all are answered: meanwhile others wait together."""
        senders = [request.get_response_sender() for request in requests]
        answers = self._process.answers([_inputs(request) for request in requests], lambda i: senders[i].is_cancelled())
        for answer in answers:
            _send(senders[answer.request], answer)

    def finalize(self) -> None:
        """End the process."""
        self._process.close()


def _inputs(request: Any) -> dict[str, Any]:
    """Return the tensors by name, and None for each parameter: a misspelt input of the generate endpoint is one."""
    tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    return dict.fromkeys(json.loads(request.parameters() or "{}").keys() - {ID}) | tensors


def _send(sender: Any, answer: Answer) -> None:
    """Send an answer. One that cannot be sent, as when shared memory is full, ends no request but its own."""
    flags = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if answer.last else 0
    try:
        if answer.outputs is None and answer.error is None:
            sender.send(flags=flags)
        else:
            sender.send(_response(answer), flags=flags)
    except Exception as error:
        traceback.print_exc()
        if answer.last:
            with suppress(Exception):
                sender.send(_response(Answer.failed(answer.request, error)), flags=flags)


def _response(answer: Answer) -> Any:
    if answer.error is not None:
        return triton.InferenceResponse(
            error=triton.TritonError(answer.error, getattr(triton.TritonError, answer.code))
        )
    return triton.InferenceResponse([triton.Tensor(name, array) for name, array in (answer.outputs or {}).items()])
