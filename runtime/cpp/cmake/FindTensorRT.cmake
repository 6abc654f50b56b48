# TensorRT::TensorRT, from TensorRT_ROOT or the system (JetPack): TensorRT 10 or 11, else TensorRT for RTX.
find_path(TensorRT_INCLUDE NvInfer.h HINTS ${TensorRT_ROOT} $ENV{TensorRT_ROOT} PATH_SUFFIXES include include/aarch64-linux-gnu)
find_library(TensorRT_LIBRARY NAMES nvinfer libnvinfer.so.11 libnvinfer.so.10 tensorrt_rtx libtensorrt_rtx.so.1
    HINTS ${TensorRT_ROOT} $ENV{TensorRT_ROOT} PATH_SUFFIXES lib lib64)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT REQUIRED_VARS TensorRT_LIBRARY TensorRT_INCLUDE
    REASON_FAILURE_MESSAGE "set TensorRT_ROOT to a release of TensorRT, or turn VAR_EDGE_TENSORRT off")
if(TensorRT_FOUND AND NOT TARGET TensorRT::TensorRT)
    add_library(TensorRT::TensorRT SHARED IMPORTED)
    set_target_properties(TensorRT::TensorRT PROPERTIES
        IMPORTED_LOCATION ${TensorRT_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${TensorRT_INCLUDE})
endif()
