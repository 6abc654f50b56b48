# var_edge::shared and var_edge::static, and where each finds the libraries of its backends: a program has to name none.
#
# An installation holds a copy of ONNX Runtime in LIBDIR/var_edge, out of the way of others, unless it is the system's.
include(GNUInstallDirs)
file(RELATIVE_PATH LIBDIR ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_LIBDIR})
file(RELATIVE_PATH INCLUDEDIR ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
set(SYSTEM_FOLDERS ${CMAKE_CXX_IMPLICIT_LINK_DIRECTORIES} /usr/local/lib)  # where a linker and a loader look unasked

# What a program that links the static library needs besides: libraries by name, and files in a build and once installed.
set(NEEDED_NAMES ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})  # the C++ library's, for programs that a C compiler links
list(REMOVE_ITEM NEEDED_NAMES ${CMAKE_C_IMPLICIT_LINK_LIBRARIES})
set(NEEDED_FILES)
if(VAR_EDGE_TENSORRT)
    list(APPEND NEEDED_FILES ${TensorRT_LIBRARY} ${CUDART_LIBRARY})
endif()
set(NEEDED_FILES_INSTALLED ${NEEDED_FILES})
set(RPATH)
if(VAR_EDGE_ONNXRUNTIME)
    get_filename_component(ONNXRUNTIME_FOLDER ${ONNXRUNTIME_LIBRARY} DIRECTORY)
    set(COPY ON)
    if(ONNXRUNTIME_FOLDER IN_LIST SYSTEM_FOLDERS)
        set(COPY OFF)
    endif()
    option(VAR_EDGE_INSTALL_ONNXRUNTIME "Install a copy of ONNX Runtime's library for var_edge alone" ${COPY})
    list(APPEND NEEDED_FILES ${ONNXRUNTIME_LIBRARY})
    if(VAR_EDGE_INSTALL_ONNXRUNTIME)
        list(APPEND NEEDED_FILES_INSTALLED $<INSTALL_PREFIX>/${LIBDIR}/var_edge/${ONNXRUNTIME_SONAME})
        set(RPATH $ORIGIN/var_edge)
    else()
        list(APPEND NEEDED_FILES_INSTALLED ${ONNXRUNTIME_LIBRARY})
        if(COPY)
            set(RPATH ${ONNXRUNTIME_FOLDER})
        endif()
    endif()
endif()

foreach(kind SHARED STATIC)
    string(TOLOWER ${kind} exported)
    set(target var_edge_${exported})
    add_library(${target} ${kind} $<TARGET_OBJECTS:var_edge_objects>)
    target_include_directories(${target} PUBLIC
        $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    set_target_properties(${target} PROPERTIES OUTPUT_NAME var_edge EXPORT_NAME ${exported})
    add_library(var_edge::${exported} ALIAS ${target})
endforeach()
target_link_libraries(var_edge_static INTERFACE
    "$<BUILD_INTERFACE:${NEEDED_FILES}>" "$<INSTALL_INTERFACE:${NEEDED_FILES_INSTALLED}>" ${NEEDED_NAMES})

# Programs of 0.1 run with every later 0.x: structs grow by size. var_edgeConfigVersion.cmake says the same.
set_target_properties(var_edge_shared PROPERTIES
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
    INSTALL_RPATH "${RPATH}" INSTALL_RPATH_USE_LINK_PATH ON
    LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map)
if(VAR_EDGE_TENSORRT)
    target_link_libraries(var_edge_shared PRIVATE ${TensorRT_LIBRARY} ${CUDART_LIBRARY})
endif()
if(VAR_EDGE_ONNXRUNTIME)
    # ONNX Runtime's functions carry the mark of their release, and a program linked with it loads beside that release
    # alone. This stand-in has the same name and no mark: libvar_edge.so loads beside any release.
    file(GENERATE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/onnxruntime.c CONTENT "void OrtGetApiBase(void) {}\n")
    add_library(var_edge_onnxruntime SHARED ${CMAKE_CURRENT_BINARY_DIR}/onnxruntime.c)
    set_target_properties(var_edge_onnxruntime PROPERTIES NO_SONAME ON)
    target_link_options(var_edge_onnxruntime PRIVATE LINKER:-soname,${ONNXRUNTIME_SONAME})
    add_dependencies(var_edge_shared var_edge_onnxruntime)
    target_link_libraries(var_edge_shared PRIVATE $<TARGET_FILE:var_edge_onnxruntime>)
    set_target_properties(var_edge_shared PROPERTIES BUILD_RPATH ${ONNXRUNTIME_FOLDER})
endif()
if(NOT VAR_EDGE_SANITIZE)  # a sanitizer's symbols stay undefined in a library
    # The C++ library's own symbols would come out of its templates: only what the header marks is exported.
    target_link_options(var_edge_shared PRIVATE
        LINKER:--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map LINKER:--no-undefined)
endif()
