# OnnxRuntime::OnnxRuntime, from ONNXRUNTIME_ROOT (include/ or headers, lib/ or the library itself) or the system.
find_path(ONNXRUNTIME_INCLUDE onnxruntime_cxx_api.h HINTS ${ONNXRUNTIME_ROOT} $ENV{ONNXRUNTIME_ROOT}
    PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session)
find_library(ONNXRUNTIME_LIBRARY NAMES onnxruntime libonnxruntime.so.1 HINTS ${ONNXRUNTIME_ROOT} $ENV{ONNXRUNTIME_ROOT}
    PATH_SUFFIXES lib lib64)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntime REQUIRED_VARS ONNXRUNTIME_LIBRARY ONNXRUNTIME_INCLUDE
    REASON_FAILURE_MESSAGE "set ONNXRUNTIME_ROOT to a release of ONNX Runtime, or turn VAR_EDGE_ONNXRUNTIME off")
if(OnnxRuntime_FOUND AND NOT TARGET OnnxRuntime::OnnxRuntime)
    add_library(OnnxRuntime::OnnxRuntime SHARED IMPORTED)  # SHARED: what links var_edge has to find it too
    set_target_properties(OnnxRuntime::OnnxRuntime PROPERTIES
        IMPORTED_LOCATION ${ONNXRUNTIME_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${ONNXRUNTIME_INCLUDE})
endif()
