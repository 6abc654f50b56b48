// The CUDA calls of the TensorRT backend: memory, one stream, graphs of work. Twin of runtime/backends/cuda.py.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "backends/arrays.hpp"
#include "errors.hpp"

namespace var_edge_impl {

struct Gpu {
    std::string name;
    std::string capability;  // "8.7"
    std::size_t total_bytes;
    bool integrated;  // shares its memory with the CPU, as a Jetson's does
};

struct Discard {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
struct FreeDevice {
    void operator()(std::uint8_t* memory) const { cudaFree(memory); }
};
struct FreePinned {
    void operator()(std::uint8_t* memory) const { cudaFreeHost(memory); }
};
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, Discard>;
using DeviceMemory = std::unique_ptr<std::uint8_t, FreeDevice>;
using PinnedMemory = std::unique_ptr<std::uint8_t, FreePinned>;  // the GPU copies from and to it without the CPU's help

// Makes device 0 the current one of the calling thread while it lives: the application may have chosen another.
class CurrentDevice {
  public:
    CurrentDevice();
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

  private:
    int before_ = 0;
};

// Device 0 with one stream, on which everything runs in order.
//
// Throws Error UNSUPPORTED if there is no GPU to use, OUT_OF_MEMORY if its memory is full, FAILED if a call fails
// later.
class Cuda {
  public:
    explicit Cuda(void* stream);  // the caller's stream, or null to create one
    ~Cuda();
    Cuda(const Cuda&) = delete;
    Cuda& operator=(const Cuda&) = delete;

    const Gpu& gpu() const { return gpu_; }
    cudaStream_t stream() const { return stream_; }

    DeviceMemory allocate(std::size_t size) const;  // aligned to 256, set to 0
    PinnedMemory pinned(std::size_t size) const;    // set to 0

    // Queues a copy between any memory of the host or the device. That of the host must stay until `synchronize`.
    void copy(void* target, const void* source, std::size_t size) const;

    // Queues a copy of `size` bytes of each of `rows` rows, which begin so many bytes after one another.
    void copy_rows(void* target, std::size_t target_pitch, const void* source, std::size_t source_pitch,
                   std::size_t size, std::size_t rows) const;

    void synchronize() const;

    // Records what `queue` queues as a graph, instead of running it.
    Graph captured(const std::function<void()>& queue) const;
    void launch(const Graph& graph) const;

    std::size_t free_bytes() const;  // that an allocation may get
    Error memory_error(std::size_t size) const;

  private:
    Gpu gpu_;
    cudaStream_t stream_ = nullptr;
    bool own_ = false;
};

// GPU memory that is allocated once, and freed when the stream no longer uses it.
class DeviceArrays final : public Arrays {
  public:
    explicit DeviceArrays(const Cuda& cuda) : cuda_(&cuda) {}
    ~DeviceArrays() override;
    DeviceArrays(const DeviceArrays&) = delete;
    DeviceArrays& operator=(const DeviceArrays&) = delete;

    Array empty(Shape shape, Dtype dtype) override;  // set to 0: the run before a recording reads it
    Array constant(Shape shape, Dtype dtype, const void* values) override;
    std::pair<std::uint8_t*, Array> shared(std::size_t size) override;
    void upload(std::uint8_t* target, const void* host, std::size_t size) override;
    void fetch(void* target, const std::uint8_t* source, std::size_t size) override;
    void copy_columns(const Array& target, const Array& source) override;
    void wait() override;

  private:
    const Cuda* cuda_;
    std::vector<DeviceMemory> memory_;
    std::vector<PinnedMemory> pinned_;
};

}  // namespace var_edge_impl
