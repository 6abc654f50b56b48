// ONNX Runtime's CUDA execution provider: its options, and memory of its GPU. ONNX Runtime makes all calls of CUDA.
#pragma once

#include "backends/arrays.hpp"
#include "backends/base.hpp"
#include "backends/ort.hpp"

namespace var_edge_impl {

// The provider, as the options of a session have it.
class CudaProvider {
  public:
    // Appends the provider. Throws Error UNSUPPORTED if this ONNX Runtime lacks it or cannot load it.
    CudaProvider(Ort::SessionOptions& options, const BackendOptions& asked);

    const Ort::MemoryInfo& memory() const { return memory_; }  // of its GPU

  private:
    Ort::MemoryInfo memory_{nullptr};
};

// Arrays of which the GPU's memory holds those that the stages pass on. What the host sets or reads is in the host's
// memory: ONNX Runtime copies it when a session runs.
class CudaArrays final : public Arrays {
  public:
    // `session` must outlive the arrays: they are in memory of its allocator.
    CudaArrays(const Ort::Session& session, const CudaProvider& provider) : device_(session, provider.memory()) {}

    Array empty(Shape shape, Dtype dtype) override;  // throws Error FAILED, OUT_OF_MEMORY
    Array constant(Shape shape, Dtype dtype, const void* values) override;
    std::pair<std::uint8_t*, Array> shared(std::size_t size) override;
    void upload(std::uint8_t* target, const void* host, std::size_t size) override;
    void fetch(void* target, const std::uint8_t* source, std::size_t size) override;
    void wait() override {}  // a stage has run when the call that runs it returns

  private:
    HostArrays host_;
    Ort::Allocator device_;
    std::vector<Ort::MemoryAllocation> memory_;
};

}  // namespace var_edge_impl
