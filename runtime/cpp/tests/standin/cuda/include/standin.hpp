// What the stand-in of TensorRT asks of the stand-in of CUDA.
//
// Environment variables choose the machine:
//   STANDIN_MEMORY      bytes of the GPU's memory, 1 GiB if unset
//   STANDIN_TAKEN       bytes of it that count as used although an allocation gets them: a Jetson's page cache
//   STANDIN_GRAPHS      how many graphs it has memory for, any number if unset
//   STANDIN_INTEGRATED  1: the GPU shares its memory with the CPU
//   STANDIN_NO_GPU      the cudaError_t that counting the GPUs ends with
//   STANDIN_READER      how TensorRT 10.9 and later read an engine: short, huge or device; see nvinfer.cpp
//   STANDIN_TRACE       a file that receives a line for each call: "malloc 4096", "queue upload 512", "launch: a; b"
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>

namespace standin {

// The value of an environment variable, or `otherwise`.
std::string variable(const char* name, const std::string& otherwise);

void trace(const std::string& line);

// Something that the GPU does when its turn comes. Returns what is wrong, "" if nothing is.
using Work = std::function<std::string()>;

// Adds work to a stream, or to the graph that is being recorded of it.
cudaError_t queue(cudaStream_t stream, const std::string& name, Work work);

// The same for a kernel, which a stream takes only while its device is the current one.
cudaError_t queue_kernel(cudaStream_t stream, const std::string& name, Work work);

bool is_capturing(cudaStream_t stream);

// What a call does that must not happen in a recording: the recording becomes invalid.
void spoil(cudaStream_t stream);

// What is wrong with `size` bytes at this address as memory that kernels use; "" if they lie in one live allocation.
std::string trouble(const void* memory, std::size_t size);

}  // namespace standin
