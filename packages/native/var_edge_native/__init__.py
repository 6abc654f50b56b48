"""Where pip installed the C and C++ library of VAR Edge: PATHS, and `python -m var_edge_native [NAME]` prints them."""

import os
import sys
from pathlib import Path
from typing import NoReturn

_PREFIX = Path(__file__).parent
PATHS = {
    "prefix": _PREFIX,  # for CMAKE_PREFIX_PATH
    "include": _PREFIX / "include",
    "library": _PREFIX / "lib" / "libvar_edge.so.0",
    "cmake": _PREFIX / "lib" / "cmake" / "var_edge",
    "pkgconfig": _PREFIX / "lib" / "pkgconfig",  # for PKG_CONFIG_PATH
    "program": _PREFIX / "bin" / "var_edge_generate",
}


def generate() -> NoReturn:
    """Become the program var_edge_generate, with the arguments of this process."""
    os.execv(PATHS["program"], ["var_edge_generate", *sys.argv[1:]])
