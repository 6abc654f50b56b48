// ONNX Runtime's CUDA execution provider: its options, and memory of its GPU. ONNX Runtime makes all calls of CUDA.
#pragma once

#include <map>
#include <mutex>
#include <utility>

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

// Copies columns of arrays in the GPU's memory, see `Arrays::copy_columns`: with graphs of its own, as ONNX Runtime has
// no call for it. Handles share it.
class ColumnCopier {
  public:
    // Both must outlive this.
    ColumnCopier(const Ort::SessionOptions& options, const CudaProvider& provider)
        : options_(&options), provider_(&provider) {}

    // One array has twice as many columns as the other. Throws Error FAILED, OUT_OF_MEMORY.
    void copy(const Array& target, const Array& source);

  private:
    Ort::Session& session(bool widening, Dtype dtype);  // opened at its first use

    const Ort::SessionOptions* options_;
    const CudaProvider* provider_;
    std::mutex mutex_;
    std::map<std::pair<bool, Dtype>, Ort::Session> sessions_;
};

// Arrays of which the GPU's memory holds those that the stages pass on. What the host sets or reads is in the host's
// memory: ONNX Runtime copies it when a session runs.
class CudaArrays final : public Arrays {
  public:
    // `session` must outlive the arrays: they are in memory of its allocator. So must `copier`.
    CudaArrays(const Ort::Session& session, const CudaProvider& provider, ColumnCopier& copier)
        : device_(session, provider.memory()), copier_(&copier) {}

    Array empty(Shape shape, Dtype dtype) override;  // throws Error FAILED, OUT_OF_MEMORY
    Array constant(Shape shape, Dtype dtype, const void* values) override;
    std::pair<std::uint8_t*, Array> shared(std::size_t size) override;
    void upload(std::uint8_t* target, const void* host, std::size_t size) override;
    void fetch(void* target, const std::uint8_t* source, std::size_t size) override;
    void copy_columns(const Array& target, const Array& source) override { copier_->copy(target, source); }
    void wait() override {}  // a stage has run when the call that runs it returns

  private:
    HostArrays host_;
    Ort::Allocator device_;
    ColumnCopier* copier_;
    std::vector<Ort::MemoryAllocation> memory_;
};

}  // namespace var_edge_impl
