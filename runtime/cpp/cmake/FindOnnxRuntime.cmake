# ONNXRUNTIME_INCLUDE, ONNXRUNTIME_LIBRARY, ONNXRUNTIME_SONAME and OnnxRuntime_VERSION: 1.N if the headers have API N.
include(${CMAKE_CURRENT_LIST_DIR}/OneRoot.cmake)
find_header(ONNXRUNTIME onnxruntime_cxx_api.h include include/onnxruntime include/onnxruntime/core/session)
if(ONNXRUNTIME_INCLUDE)
    find_library_beside(ONNXRUNTIME onnxruntime libonnxruntime.so.1)
    file(STRINGS ${ONNXRUNTIME_INCLUDE}/onnxruntime_c_api.h OnnxRuntime_VERSION REGEX "^#define ORT_API_VERSION +[0-9]+")
    string(REGEX REPLACE "^#define ORT_API_VERSION +([0-9]+).*" "1.\\1" OnnxRuntime_VERSION "${OnnxRuntime_VERSION}")
endif()
if(ONNXRUNTIME_LIBRARY)
    execute_process(COMMAND ${CMAKE_READELF} -d ${ONNXRUNTIME_LIBRARY} OUTPUT_VARIABLE ONNXRUNTIME_SONAME ERROR_QUIET)
    string(REGEX MATCH "soname: \\[([^]]+)" ONNXRUNTIME_SONAME "${ONNXRUNTIME_SONAME}")
    set(ONNXRUNTIME_SONAME ${CMAKE_MATCH_1})
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntime
    REQUIRED_VARS ONNXRUNTIME_LIBRARY ONNXRUNTIME_INCLUDE ONNXRUNTIME_SONAME VERSION_VAR OnnxRuntime_VERSION
    REASON_FAILURE_MESSAGE "set ONNXRUNTIME_ROOT to a release of ONNX Runtime, or turn VAR_EDGE_ONNXRUNTIME off")
