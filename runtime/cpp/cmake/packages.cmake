# Debian packages: cpack -G DEB in a build that was configured with -DCMAKE_INSTALL_PREFIX=/usr, as packages/debs.py does.
#
#   libvar-edge0     the library, and ONNX Runtime's in a folder of its own: Debian 12 and Ubuntu 22.04 have no package of it
#   libvar-edge-dev  headers, static library, CMake package and pkg-config files
#   var-edge-tools   the program var_edge_generate
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME var-edge)
set(CPACK_PACKAGE_VENDOR "VAR Edge developers")
set(CPACK_PACKAGE_CONTACT "VAR Edge developers")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL library development tools)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)

set(SONAME_VERSION ${PROJECT_VERSION_MAJOR})
set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME libvar-edge${SONAME_VERSION})
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_MULTIARCH same)
set(CPACK_COMPONENT_LIBRARY_DESCRIPTION "VAR image generation on edge devices: shared library
 Draws images with bundles of VAR Edge, through ONNX Runtime, whose library this
 package holds for itself.")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libvar-edge-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_MULTIARCH same)
set(CPACK_COMPONENT_DEVELOPMENT_DESCRIPTION "VAR image generation on edge devices: files for development
 Headers for C and C++, static library, CMake package and pkg-config files.")
set(CPACK_DEBIAN_TOOLS_PACKAGE_NAME var-edge-tools)
set(CPACK_DEBIAN_TOOLS_PACKAGE_SECTION graphics)
set(CPACK_COMPONENT_TOOLS_DESCRIPTION "VAR image generation on edge devices: command-line program
 var_edge_generate draws images of given classes with a bundle of VAR Edge.")
foreach(component DEVELOPMENT TOOLS)
    set(CPACK_DEBIAN_${component}_PACKAGE_DEPENDS "${CPACK_DEBIAN_LIBRARY_PACKAGE_NAME} (= ${PROJECT_VERSION})")
endforeach()

# The system libraries that each package needs. dpkg-shlibdeps knows the versions of this machine's architecture alone:
# whoever compiles for another one says them, as packages/debs.py does.
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS OFF)
if(CMAKE_CROSSCOMPILING)
    string(REPLACE aarch64 arm64 CPACK_DEBIAN_PACKAGE_ARCHITECTURE ${CMAKE_SYSTEM_PROCESSOR})
    string(REPLACE x86_64 amd64 CPACK_DEBIAN_PACKAGE_ARCHITECTURE ${CPACK_DEBIAN_PACKAGE_ARCHITECTURE})
    set(VAR_EDGE_DEBIAN_DEPENDS "" CACHE STRING "System libraries that cross-compiled packages depend on")
    set(CPACK_DEBIAN_LIBRARY_PACKAGE_DEPENDS "${VAR_EDGE_DEBIAN_DEPENDS}")
    string(PREPEND CPACK_DEBIAN_TOOLS_PACKAGE_DEPENDS "${VAR_EDGE_DEBIAN_DEPENDS}, ")
else()
    set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
    set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${ONNXRUNTIME_FOLDER} ${CMAKE_CURRENT_BINARY_DIR})
endif()
# CPack's own list would offer the copy of ONNX Runtime to other packages.
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/debian/shlibs
    "libvar_edge ${SONAME_VERSION} ${CPACK_DEBIAN_LIBRARY_PACKAGE_NAME} (>= ${PROJECT_VERSION})\n")
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA ${CMAKE_CURRENT_BINARY_DIR}/debian/shlibs)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_STRICT_PERMISSION ON)

# Where Debian's tools look for the licence of a package.
if(CMAKE_INSTALL_PREFIX STREQUAL /usr)
    foreach(component LIBRARY DEVELOPMENT TOOLS)
        string(TOLOWER ${component} name)
        install(FILES ${CMAKE_CURRENT_SOURCE_DIR}/../../LICENSE RENAME copyright COMPONENT ${name}
            DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${CPACK_DEBIAN_${component}_PACKAGE_NAME})
    endforeach()
endif()
include(CPack)
