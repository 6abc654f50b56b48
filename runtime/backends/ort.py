"""Import ONNX Runtime with its telemetry off. This is the only place in the project that imports it.

Since 1.32 ONNX Runtime stores a device identifier and a database of events in the user's cache directory on Linux, and
may upload them. The library reads the environment variable when it is loaded, so the variable is set before the
import. The call below covers applications that have loaded ONNX Runtime before.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
