// ONNX Runtime with its telemetry off: the only place that includes it. Twin of runtime/backends/ort.py.
#pragma once

#define ORT_API_MANUAL_INIT  // `environment` asks for the API, so that no static constructor has to
#include <onnxruntime_cxx_api.h>

#include <string>

#include "errors.hpp"

namespace var_edge_impl {

// The process's one environment: ONNX Runtime allows no second one beside it. Throws Error UNSUPPORTED if the library
// that was loaded is too old. It comes before any other call of ONNX Runtime's.
Ort::Env& environment();

}  // namespace var_edge_impl
