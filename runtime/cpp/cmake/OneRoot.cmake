# Headers and library of one SDK, never of two: the header decides where the library may be.
#
# NAME_ROOT, a variable or from the environment, is the only place searched if it is set; else the system's usual places
# are. A NAME_INCLUDE and NAME_LIBRARY given by the user are taken as they are.

# Sets NAME_INCLUDE: the directory of `header`, in a root or in one of its folders ARGN.
function(find_header name header)
    set(root "${${name}_ROOT}")
    if(NOT root)
        set(root "$ENV{${name}_ROOT}")
    endif()
    if(DEFINED ${name}_SEARCHED AND NOT "${root}" STREQUAL "${${name}_SEARCHED}")  # what another root gave
        unset(${name}_INCLUDE CACHE)
        unset(${name}_LIBRARY CACHE)
    endif()
    set(${name}_SEARCHED "${root}" CACHE INTERNAL "The root of an earlier search")
    if(root)
        find_path(${name}_INCLUDE ${header} PATHS ${root} PATH_SUFFIXES ${ARGN} NO_DEFAULT_PATH)
    else()
        find_path(${name}_INCLUDE ${header} PATH_SUFFIXES ${ARGN})
    endif()
endfunction()

# Sets NAME_LIBRARY: the first of the names ARGN in the root that NAME_INCLUDE is of. What an earlier call found beside
# other headers is forgotten.
function(find_library_beside name)
    if(DEFINED ${name}_BESIDE AND NOT "${${name}_INCLUDE}" STREQUAL "${${name}_BESIDE}"
            AND "${${name}_LIBRARY}" STREQUAL "${${name}_FOUND_BESIDE}")
        unset(${name}_LIBRARY CACHE)
    endif()
    string(REGEX REPLACE "^(.*)/include(/.*)?$" "\\1" root "${${name}_INCLUDE}")
    find_library(${name}_LIBRARY NAMES ${ARGN} PATHS ${root} NO_DEFAULT_PATH
        PATH_SUFFIXES lib/${CMAKE_LIBRARY_ARCHITECTURE} lib64 lib)
    set(${name}_BESIDE "${${name}_INCLUDE}" CACHE INTERNAL "The headers of an earlier search")
    set(${name}_FOUND_BESIDE "${${name}_LIBRARY}" CACHE INTERNAL "The library that it found")
endfunction()
