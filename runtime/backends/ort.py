"""ONNX Runtime with its telemetry off: the one place of this project that imports it.

Since 1.32 it keeps an identifier of the device and a database of events under the user's cache directory on Linux, and
may upload them. The environment variable is read when its library is loaded, so it is set first; the call serves an
application that has loaded ONNX Runtime before.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
