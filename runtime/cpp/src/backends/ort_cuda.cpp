#include "backends/ort_cuda.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <unordered_map>

#include "errors.hpp"

namespace var_edge_impl {

namespace {

constexpr const char* NAME = "CUDAExecutionProvider";
constexpr const char* DEVICE = "device_id";

std::unordered_map<std::string, std::string> provider_options(const BackendOptions& asked) {
    std::unordered_map<std::string, std::string> options(asked.provider.begin(), asked.provider.end());
    options.emplace("use_tf32", "0");  // 10 bits of mantissa change what is drawn
    // By default the arena grows by powers of two, and our arrays would take up to twice their size.
    options.emplace("arena_extend_strategy", "kSameAsRequested");
    if (asked.device >= 0) options[DEVICE] = std::to_string(asked.device);
    options.emplace(DEVICE, "0");
    return options;
}

}  // namespace

CudaProvider::CudaProvider(Ort::SessionOptions& options, const BackendOptions& asked) {
    const auto available = Ort::GetAvailableProviders();
    if (std::find(available.begin(), available.end(), NAME) == available.end()) {
        throw unsupported(std::string("this ONNX Runtime has no ") + NAME +
                          "; link a build that has it, or use another backend");
    }
    const auto values = provider_options(asked);
    try {
        Ort::CUDAProviderOptions chosen;
        chosen.Update(values);
        if (asked.stream) chosen.UpdateWithValue("user_compute_stream", asked.stream);
        options.AppendExecutionProvider_CUDA_V2(*chosen);
    } catch (const Ort::Exception& error) {
        throw engine_error(VAR_EDGE_UNSUPPORTED, NAME, error.what());
    }
    // ONNX Runtime has taken the number.
    memory_ = Ort::MemoryInfo("Cuda", OrtDeviceAllocator, std::atoi(values.at(DEVICE).c_str()), OrtMemTypeDefault);
}

Array CudaArrays::empty(Shape shape, Dtype dtype) {
    Array array{nullptr, std::move(shape), dtype, Place::device};
    const std::size_t size = std::max<std::size_t>(array.bytes(), 1);
    try {
        memory_.push_back(device_.GetAllocation(size));
    } catch (const Ort::Exception& error) {
        throw engine_error(VAR_EDGE_FAILED, "GPU memory: " + std::to_string(size) + " bytes are needed", error.what());
    }
    array.data = static_cast<std::uint8_t*>(memory_.back().get());
    return array;
}

Array CudaArrays::constant(Shape shape, Dtype dtype, const void* values) {
    return host_.constant(std::move(shape), dtype, values);
}

std::pair<std::uint8_t*, Array> CudaArrays::shared(std::size_t size) { return host_.shared(size); }

void CudaArrays::upload(std::uint8_t* target, const void* host, std::size_t size) { host_.upload(target, host, size); }

void CudaArrays::fetch(void* target, const std::uint8_t* source, std::size_t size) {
    host_.fetch(target, source, size);
}

}  // namespace var_edge_impl
