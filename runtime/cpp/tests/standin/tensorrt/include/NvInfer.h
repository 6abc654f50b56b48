// Where FindTensorRT.cmake looks for TensorRT's headers.
#include "NvInferRuntime.h"
