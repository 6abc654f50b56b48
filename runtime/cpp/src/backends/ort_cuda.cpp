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

std::string varint(std::uint64_t number) {
    std::string text;
    for (; number >= 0x80; number >>= 7) text += char(number | 0x80);
    return text + char(number);
}

// Fields of a protobuf message: a number, and bytes, which may be a message.
std::string field(std::uint64_t key, std::uint64_t number) { return varint(key << 3) + varint(number); }
std::string field(std::uint64_t key, const std::string& bytes) {
    return varint(key << 3 | 2) + varint(bytes.size()) + bytes;
}

// Returns an ONNX model that computes `target` from `source`, both (rows, columns, size). The keys are those of
// onnx.proto.
std::string copying_model(bool widening, Dtype dtype) {
    const auto tensor = [&](const std::string& name) {
        std::string shape;
        for (const std::string& axis : {std::string("rows"), name, std::string("size")}) {
            shape += field(1, field(2, axis));
        }
        return field(1, name) + field(2, field(1, field(1, element_type(dtype)) + field(2, shape)));
    };
    const std::string source = "source", target = "target";
    // Twice the source, or the first half of it: nobody reads the other.
    std::string node = widening ? field(1, source) + field(1, source) + field(2, target)
                                : field(1, source) + field(2, target) + field(2, std::string("rest"));
    node += field(4, std::string(widening ? "Concat" : "Split"));
    node += field(5, field(1, std::string("axis")) + field(3, 1) + field(20, 2));  // an integer
    const std::string graph =
        field(1, node) + field(2, std::string("copy")) + field(11, tensor(source)) + field(12, tensor(target));
    return field(1, 8) + field(7, graph) + field(8, field(2, 13));  // IR version 8, opset 13
}

Ort::Value value_of(const Array& array, const Ort::MemoryInfo& memory) {
    const std::int64_t rows = array.shape[0], columns = array.shape[1];
    const std::int64_t shape[] = {rows, columns, array.values() / std::max<std::int64_t>(rows * columns, 1)};
    return Ort::Value::CreateTensor(memory, array.data, array.bytes(), shape, 3, element_type(array.dtype));
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

Ort::Session& ColumnCopier::session(bool widening, Dtype dtype) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sessions_.find({widening, dtype});
    if (found != sessions_.end()) return found->second;
    const std::string model = copying_model(widening, dtype);
    Ort::Session made(environment(), model.data(), model.size(), *options_);
    return sessions_.emplace(std::pair(widening, dtype), std::move(made)).first->second;
}

void ColumnCopier::copy(const Array& target, const Array& source) {
    try {
        Ort::Session& copying = session(target.shape[1] > source.shape[1], source.dtype);
        Ort::IoBinding binding(copying);
        binding.BindInput("source", value_of(source, provider_->memory()));
        binding.BindOutput("target", value_of(target, provider_->memory()));
        copying.Run(Ort::RunOptions(), binding);
    } catch (const Ort::Exception& error) {
        throw engine_error(VAR_EDGE_FAILED, "copy of columns: ONNX Runtime failed", error.what());
    }
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
