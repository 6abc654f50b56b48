// ONNX Runtime with its telemetry off: the only place that includes it. Twin of runtime/backends/ort.py.
#pragma once

#define ORT_API_MANUAL_INIT  // `environment` asks for the API, so that no static constructor has to
#include <onnxruntime_cxx_api.h>

#include <string>

#include "bundle/manifest.hpp"
#include "errors.hpp"

namespace var_edge_impl {

// The process's one environment: ONNX Runtime allows no second one beside it. Throws Error UNSUPPORTED if the library
// that was loaded is too old. It comes before any other call of ONNX Runtime's.
Ort::Env& environment();

// Returns ONNX Runtime's name of a dtype.
inline ONNXTensorElementDataType element_type(Dtype dtype) {
    constexpr ONNXTensorElementDataType types[] = {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,   ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
    return types[std::size_t(dtype)];
}

}  // namespace var_edge_impl
