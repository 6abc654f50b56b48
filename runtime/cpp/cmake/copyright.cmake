# The file "copyright", with the licences of all that is installed: ours, nlohmann-json's, which is compiled in, and with
# a copy of ONNX Runtime its own and those of what it contains. Debian packages have a folder for it.
set(COPYRIGHT ${CMAKE_CURRENT_BINARY_DIR}/copyright)
set(DEBIAN OFF)
if(TOP_LEVEL AND CMAKE_INSTALL_PREFIX STREQUAL /usr)
    set(DEBIAN ON)
endif()
file(READ ${CMAKE_CURRENT_SOURCE_DIR}/../../LICENSE LICENCES)
string(REPEAT "-" 78 LINE)

function(append_licence of)  # the first file that is there
    foreach(file ${ARGN})
        if(EXISTS ${file})
            file(READ ${file} licence)
            set(LICENCES "${LICENCES}\n${LINE}\n${of}\n\n${licence}" PARENT_SCOPE)
            return()
        endif()
    endforeach()
    if(DEBIAN)
        message(WARNING "${of}: expected its licence in one of ${ARGN}, found none; the packages lack it")
    endif()
endfunction()

append_licence("nlohmann-json, which is compiled into libvar_edge"
    "${NLOHMANN_JSON_INCLUDE}/nlohmann/LICENSE.MIT" /usr/share/doc/nlohmann-json3-dev/copyright)
if(VAR_EDGE_INSTALL_ONNXRUNTIME)
    append_licence("ONNX Runtime, libonnxruntime.so.1" ${ONNXRUNTIME_FOLDER}/../LICENSE)
    append_licence("What ONNX Runtime contains" ${ONNXRUNTIME_FOLDER}/../ThirdPartyNotices.txt)
endif()
file(WRITE ${COPYRIGHT} "${LICENCES}")
if(NOT DEBIAN)
    install(FILES ${COPYRIGHT} DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/var_edge COMPONENT library)
endif()
