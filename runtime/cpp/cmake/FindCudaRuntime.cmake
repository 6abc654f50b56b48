# CUDART_INCLUDE and CUDART_LIBRARY: the headers of the CUDA toolkit that CMake finds, and the runtime beside them. CMake
# itself looks for the runtime in all usual places, where another toolkit may come first.
include(${CMAKE_CURRENT_LIST_DIR}/OneRoot.cmake)
find_package(CUDAToolkit QUIET)
set(CUDART_INCLUDE)
foreach(folder ${CUDAToolkit_INCLUDE_DIRS})
    if(NOT CUDART_INCLUDE AND EXISTS ${folder}/cuda_runtime_api.h)
        set(CUDART_INCLUDE ${folder})
    endif()
endforeach()
if(CUDART_INCLUDE)
    find_library_beside(CUDART cudart)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CudaRuntime REQUIRED_VARS CUDART_LIBRARY CUDART_INCLUDE
    REASON_FAILURE_MESSAGE "set CUDAToolkit_ROOT to a CUDA toolkit, or turn VAR_EDGE_TENSORRT off")
