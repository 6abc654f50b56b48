// CMake takes a folder for that of CUDA's headers if it holds this file.
#include "cuda_runtime_api.h"
