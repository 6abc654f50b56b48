# The libraries, headers, CMake package and pkg-config files, all found from where they lie: an installation can be moved.
# Three components, which packages.cmake packs: library, what programs run with; development; tools, the program.
include(CMakePackageConfigHelpers)
set(PACKAGE ${CMAKE_INSTALL_LIBDIR}/cmake/var_edge)
install(TARGETS var_edge_shared var_edge_static EXPORT var_edge
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library NAMELINK_COMPONENT development
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development)
install(FILES include/var_edge.h include/var_edge.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)
if(VAR_EDGE_INSTALL_ONNXRUNTIME)
    get_filename_component(LIBRARY ${ONNXRUNTIME_LIBRARY} REALPATH)
    file(GLOB PROVIDERS ${ONNXRUNTIME_FOLDER}/libonnxruntime_providers_*.so)
    install(FILES ${LIBRARY} RENAME ${ONNXRUNTIME_SONAME} DESTINATION ${CMAKE_INSTALL_LIBDIR}/var_edge
        COMPONENT library)
    install(FILES ${PROVIDERS} DESTINATION ${CMAKE_INSTALL_LIBDIR}/var_edge COMPONENT library)
endif()
include(cmake/copyright.cmake)

install(EXPORT var_edge NAMESPACE var_edge:: FILE var_edgeTargets.cmake DESTINATION ${PACKAGE} COMPONENT development)
configure_package_config_file(cmake/var_edgeConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/var_edgeConfig.cmake
    INSTALL_DESTINATION ${PACKAGE})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/var_edgeConfigVersion.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/var_edgeConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/var_edgeConfigVersion.cmake
    DESTINATION ${PACKAGE} COMPONENT development)

# var_edge.pc, and var_edge_static.pc for the static library where both are installed.
file(RELATIVE_PATH UP ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX}/.)
string(REGEX REPLACE "/$" "" UP ${UP})
set(PRIVATE)
foreach(name ${NEEDED_NAMES})
    string(APPEND PRIVATE " -l${name}")
endforeach()
foreach(file ${NEEDED_FILES_INSTALLED})
    string(REPLACE "$<INSTALL_PREFIX>" "\${prefix}" file ${file})
    get_filename_component(folder ${file} DIRECTORY)
    get_filename_component(name ${file} NAME)
    if(NOT folder IN_LIST SYSTEM_FOLDERS)
        string(APPEND PRIVATE " -L${folder} -Wl,-rpath,${folder}")
    endif()
    string(APPEND PRIVATE " -l:${name}")
endforeach()
set(RUN " -Wl,-rpath,\${libdir}")
if(CMAKE_INSTALL_FULL_LIBDIR IN_LIST CMAKE_CXX_IMPLICIT_LINK_DIRECTORIES)
    set(RUN)
endif()
foreach(name var_edge var_edge_static)
    if(name STREQUAL var_edge)
        set(LIBS "-lvar_edge${RUN}\nLibs.private:${PRIVATE}")
    else()
        set(LIBS "-l:libvar_edge.a${PRIVATE}")
    endif()
    configure_file(cmake/var_edge.pc.in ${CMAKE_CURRENT_BINARY_DIR}/${name}.pc @ONLY)
    install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
        COMPONENT development)
endforeach()
