# TensorRT_INCLUDE, TensorRT_LIBRARY and TensorRT_VERSION: TensorRT 10 or 11, or TensorRT for RTX, whichever the headers
# are of.
include(${CMAKE_CURRENT_LIST_DIR}/OneRoot.cmake)
find_header(TensorRT NvInfer.h include include/${CMAKE_LIBRARY_ARCHITECTURE})
if(TensorRT_INCLUDE)
    file(READ ${TensorRT_INCLUDE}/NvInferVersion.h TensorRT_HEADER)
    string(REGEX MATCH "#define [A-Z_]+_MAJOR(_[A-Z]+)? +([0-9]+)" TensorRT_MAJOR "${TensorRT_HEADER}")
    set(TensorRT_MAJOR ${CMAKE_MATCH_2})
    string(REGEX MATCH "#define [A-Z_]+_MINOR(_[A-Z]+)? +([0-9]+)" TensorRT_MINOR "${TensorRT_HEADER}")
    set(TensorRT_VERSION ${TensorRT_MAJOR}.${CMAKE_MATCH_2})
    if(TensorRT_HEADER MATCHES "TRT_MAJOR_RTX")
        find_library_beside(TensorRT libtensorrt_rtx.so.${TensorRT_MAJOR})
    else()
        find_library_beside(TensorRT libnvinfer.so.${TensorRT_MAJOR})
    endif()
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT REQUIRED_VARS TensorRT_LIBRARY TensorRT_INCLUDE VERSION_VAR TensorRT_VERSION
    REASON_FAILURE_MESSAGE "set TensorRT_ROOT to a release of TensorRT, or turn VAR_EDGE_TENSORRT off")
