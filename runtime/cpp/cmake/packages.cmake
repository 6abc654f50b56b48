# Debian packages: cpack -G DEB in a build that was configured with -DCMAKE_INSTALL_PREFIX=/usr, as packages/debs.py does.
#
#   libvar-edge0     the library, and ONNX Runtime's in a folder of its own: Debian 12 and Ubuntu 22.04 have no package of it
#   libvar-edge-dev  headers, static library, CMake package and pkg-config files
#   var-edge-tools   the program var_edge_generate
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME var-edge)
set(CPACK_PACKAGE_VENDOR "VAR Edge developers")
set(CPACK_PACKAGE_CONTACT "VAR Edge developers <var-edge@example.invalid>")
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

# The system libraries that each package needs. dpkg-shlibdeps knows the versions of this machine's architecture only.
# A cross build gets them in VAR_EDGE_DEBIAN_DEPENDS, which packages/debs.py computes.
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
# CPack's own shlibs would offer the copy of ONNX Runtime to other packages. It writes triggers for this machine's
# architecture only.
set(CONTROL ${CMAKE_CURRENT_BINARY_DIR}/debian)
file(WRITE ${CONTROL}/shlibs
    "libvar_edge ${SONAME_VERSION} ${CPACK_DEBIAN_LIBRARY_PACKAGE_NAME} (>= ${PROJECT_VERSION})\n")
file(WRITE ${CONTROL}/triggers "activate-noawait ldconfig\n")
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA ${CONTROL}/shlibs ${CONTROL}/triggers)

if(DEBIAN)
    include(cmake/changelog.cmake)
    set(DOC ${CMAKE_INSTALL_DATADIR}/doc)
    install(FILES ${COPYRIGHT} ${CHANGELOG} DESTINATION ${DOC}/${CPACK_DEBIAN_LIBRARY_PACKAGE_NAME} COMPONENT library)
    install(FILES ${CMAKE_CURRENT_SOURCE_DIR}/cmake/lintian-overrides RENAME ${CPACK_DEBIAN_LIBRARY_PACKAGE_NAME}
        DESTINATION ${CMAKE_INSTALL_DATADIR}/lintian/overrides COMPONENT library)
    # The other packages depend on exactly this version of the library's, so its folder can be theirs.
    foreach(component DEVELOPMENT TOOLS)
        string(TOLOWER ${component} name)
        set(link ${CONTROL}/${CPACK_DEBIAN_${component}_PACKAGE_NAME})
        file(CREATE_LINK ${CPACK_DEBIAN_LIBRARY_PACKAGE_NAME} ${link} SYMBOLIC)
        install(FILES ${link} DESTINATION ${DOC} COMPONENT ${name})
    endforeach()
endif()
include(CPack)
