#include "backends/trt_engine.hpp"

#include <algorithm>
#include <cstdio>

#include "errors.hpp"
#include "files/fingerprint.hpp"

// 10.7 brought the reader that also reads into the GPU's memory; every TensorRT for RTX has it.
#if defined(TRT_MAJOR_RTX) || NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 7)
#define VAR_EDGE_READER_V2 1
#else
#define VAR_EDGE_READER_V2 0
#endif

// 10.1 brought scratch memory that says its size.
#if defined(TRT_MAJOR_RTX) || NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 1)
#define VAR_EDGE_SIZED_SCRATCH 1
#else
#define VAR_EDGE_SIZED_SCRATCH 0
#endif

namespace var_edge_impl {

namespace {

#if VAR_EDGE_READER_V2
constexpr std::int64_t READ_BYTES = 64 << 20;  // what goes to the GPU passes through the host in pieces of this size
#endif

struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
};

#if VAR_EDGE_READER_V2
using ReaderBase = nvinfer1::IStreamReaderV2;
#else
using ReaderBase = nvinfer1::IStreamReader;
#endif

// Reads an engine straight into TensorRT's memory, so that the host never holds a copy of it. Its virtuals answer with
// -1, not with an exception.
class StreamReader final : public ReaderBase {
  public:
    StreamReader(const std::filesystem::path& path, const Cuda& cuda)
        : cuda_(&cuda), file_(std::fopen(path.c_str(), "rb")) {
        if (!file_) throw bad_bundle(path.string() + ": cannot be read");
        std::setvbuf(file_.get(), nullptr, _IONBF, 0);  // the pieces are large
    }

#if VAR_EDGE_READER_V2
    // It may want all weights at once, and nothing says that it asks again for what a read did not bring.
    std::int64_t read(void* target, std::int64_t size, cudaStream_t stream) noexcept override {
        try {
            return on_host(target) ? read_host(target, size) : read_device(target, size, stream);
        } catch (...) {
            return -1;
        }
    }

    bool seek(std::int64_t offset, nvinfer1::SeekPosition where) noexcept override {
        const int whence = where == nvinfer1::SeekPosition::kSET   ? SEEK_SET
                           : where == nvinfer1::SeekPosition::kCUR ? SEEK_CUR
                                                                   : SEEK_END;
        return fseeko(file_.get(), off_t(offset), whence) == 0;
    }
#else
    // It wants all of what it asks for, in the host's memory.
    std::int64_t read(void* target, std::int64_t size) noexcept override { return read_host(target, size); }
#endif

  private:
    std::int64_t read_host(void* target, std::int64_t size) noexcept {
        const std::size_t count = std::fread(target, 1, std::size_t(size), file_.get());
        return std::ferror(file_.get()) ? -1 : std::int64_t(count);
    }

#if VAR_EDGE_READER_V2
    static bool on_host(const void* target) {
        cudaPointerAttributes attributes{};
        if (cudaPointerGetAttributes(&attributes, target) != cudaSuccess) {
            cudaGetLastError();
            return true;
        }
        return attributes.type == cudaMemoryTypeUnregistered || attributes.type == cudaMemoryTypeHost;
    }

    std::int64_t read_device(void* target, std::int64_t size, cudaStream_t stream) {
        if (!piece_) piece_ = cuda_->pinned(std::size_t(READ_BYTES));
        std::int64_t done = 0;
        while (done < size) {
            const std::int64_t count = read_host(piece_.get(), std::min(size - done, READ_BYTES));
            if (count < 0) return -1;
            if (!count) break;  // the end of the file
            const cudaError_t status = cudaMemcpyAsync(static_cast<std::uint8_t*>(target) + done, piece_.get(),
                                                       std::size_t(count), cudaMemcpyDefault, stream);
            // The next piece comes through the same memory.
            if (status != cudaSuccess || cudaStreamSynchronize(stream) != cudaSuccess) return -1;
            done += count;
        }
        return done;
    }
#endif

    [[maybe_unused]] const Cuda* cuda_;
    PinnedMemory piece_;
    std::unique_ptr<std::FILE, CloseFile> file_;
};

using Tensor = std::pair<bool, std::string>;  // whether it is an input, its dtype

const char* dtype_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT: return dtype_name(Dtype::float32);
        case nvinfer1::DataType::kHALF: return dtype_name(Dtype::float16);
        case nvinfer1::DataType::kINT64: return dtype_name(Dtype::int64);
        case nvinfer1::DataType::kINT32: return dtype_name(Dtype::int32);
        case nvinfer1::DataType::kUINT8: return dtype_name(Dtype::uint8);
        case nvinfer1::DataType::kBOOL: return dtype_name(Dtype::boolean);
        default: return "no type of a manifest";
    }
}

Shape shape_of(const nvinfer1::Dims& dims) { return {dims.d, dims.d + std::max(dims.nbDims, 0)}; }

nvinfer1::Dims dims_of(const Shape& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = std::int32_t(shape.size());
    if (shape.size() > nvinfer1::Dims::MAX_DIMS) {
        throw bad_bundle("a profile's shape has more axes than TensorRT knows");
    }
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

std::string text_of(const Shape& shape) {
    std::string text;
    for (std::int64_t axis : shape) text += (text.empty() ? "" : ", ") + std::to_string(axis);
    return "(" + text + ")";
}

}  // namespace

std::string tensorrt_version() {
    std::string version;
    for (int number :
         {getInferLibMajorVersion(), getInferLibMinorVersion(), getInferLibPatchVersion(), getInferLibBuildVersion()}) {
        version += (version.empty() ? "" : ".") + std::to_string(number);
    }
    return version;
}

void TrtLog::log(Severity severity, const char* text) noexcept {
    try {
        if (severity > Severity::kWARNING) return;
        const std::string line = one_line(text);
        std::unique_lock lock(mutex_);
        if (severity == Severity::kWARNING) {
            const Log forward = forward_;
            lock.unlock();  // the application's code runs without our lock
            if (forward) forward(1, "TensorRT: " + line);
        } else if (std::find(errors_.begin(), errors_.end(), line) == errors_.end()) {
            errors_.push_back(line);
        }
    } catch (...) {  // what cannot be said is not worth a crash
    }
}

std::string TrtLog::reason() {
    const std::lock_guard lock(mutex_);
    std::string all;
    for (const std::string& line : errors_) all += (all.empty() ? "" : "; ") + line;
    errors_.clear();
    return all.empty() ? "TensorRT gives no reason" : all;
}

namespace {

struct Loggers {
    std::mutex mutex;
    std::vector<TrtLog*> left;
};

Loggers& loggers() {
    static Loggers& all = *new Loggers;  // TensorRT may still log while the process ends
    return all;
}

}  // namespace

OpenLog::OpenLog(Log forward) {
    {
        Loggers& all = loggers();
        const std::lock_guard lock(all.mutex);
        if (all.left.empty()) all.left.push_back(new TrtLog);
        log_ = all.left.back();
        all.left.pop_back();
    }
    const std::lock_guard lock(log_->mutex_);
    log_->forward_ = std::move(forward);
}

OpenLog::~OpenLog() {
    {
        const std::lock_guard lock(log_->mutex_);
        log_->forward_ = nullptr;
        log_->errors_.clear();
    }
    Loggers& all = loggers();
    const std::lock_guard lock(all.mutex);
    all.left.push_back(log_);
}

LoadedEngine::LoadedEngine(nvinfer1::IRuntime& runtime, TrtLog& log, const Cuda& cuda, KernelCache& kernels,
                           const std::filesystem::path& path, const GraphSpec& graph, const Engine& record)
    : log_(&log), cuda_(&cuda), kernels_(&kernels), path_(path.string()), record_(&record) {
    StreamReader file(path, cuda);
    engine_.reset(runtime.deserializeCudaEngine(file));
    if (!engine_) {
        const std::size_t size = std::size_t(file_bytes(path));
        const Error error = problem(VAR_EDGE_BAD_BUNDLE, "TensorRT cannot read it");
        if (error.status == VAR_EDGE_OUT_OF_MEMORY) throw error;
        if (size > cuda.free_bytes()) throw out_of_memory(path_ + ": " + cuda.memory_error(size).what());
        throw bad_bundle(error.what() + std::string("; run make engine on this machine"));
    }
    check_tensors(graph);
    check_profiles();
    contexts_.resize(record.profiles.size());
}

std::size_t LoadedEngine::scratch_bytes() const {
    std::size_t most = 0;
    for (std::size_t i = 0; i < record_->profiles.size(); ++i) {
#if VAR_EDGE_SIZED_SCRATCH
        most = std::max(most, std::size_t(engine_->getDeviceMemorySizeForProfileV2(std::int32_t(i))));
#else
        most = std::max(most, engine_->getDeviceMemorySizeForProfile(std::int32_t(i)));
#endif
    }
    return most;
}

void LoadedEngine::use(const Array& scratch) {
    scratch_ = scratch;
    free_contexts();
}

void LoadedEngine::free_contexts() {
    for (Context& context : contexts_) context.reset();
}

void LoadedEngine::enqueue(std::size_t profile, const Stage& stage) {
    if (profile >= contexts_.size()) {
        throw bad_bundle(path_ + ": has no profile " + std::to_string(profile) + "; run make engine again");
    }
    if (!contexts_[profile]) contexts_[profile] = context(profile);
    nvinfer1::IExecutionContext& ready = *contexts_[profile];
    for (const Tensors* tensors : {&stage.inputs, &stage.outputs}) {
        for (const auto& [name, array] : *tensors) bind(ready, profile, name, array);
    }
    if (!ready.enqueueV3(cuda_->stream())) throw problem(VAR_EDGE_FAILED, "TensorRT failed");
}

// With what TensorRT said. Its calls answer yes or no: that the GPU's memory is full is only in the text.
Error LoadedEngine::problem(var_edge_status status, const std::string& what) const {
    return engine_error(status, path_ + ": " + what, log_->reason());
}

void LoadedEngine::bind(nvinfer1::IExecutionContext& context, std::size_t profile, const std::string& name,
                        const Array& array) const {
    const auto& shapes = record_->profiles[profile];
    if (const auto expected = shapes.find(name); expected != shapes.end() && expected->second != array.shape) {
        throw bad_bundle(path_ + ": " + name + ": expected " + text_of(expected->second) + ", found " +
                         text_of(array.shape) + "; run make engine again");
    }
    if (!context.setTensorAddress(name.c_str(), array.data)) {
        throw problem(VAR_EDGE_FAILED, name + ": TensorRT refuses its address");
    }
}

LoadedEngine::Context LoadedEngine::new_context() {
    constexpr auto scratch_is_ours = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
#ifdef TRT_MAJOR_RTX
    if (!config_) config_.reset(engine_->createRuntimeConfig());
    if (!config_) return nullptr;
    config_->setExecutionContextAllocationStrategy(scratch_is_ours);
    // It compiles the kernels of a shape in the background unless told otherwise, and runs slower ones until they are
    // ready: a recording would keep those for ever.
    config_->setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
    kernels_->attach(*config_);
    return Context(engine_->createExecutionContext(config_.get()));
#else
    return Context(engine_->createExecutionContext(scratch_is_ours));
#endif
}

// TensorRT allows one context for each profile.
LoadedEngine::Context LoadedEngine::context(std::size_t profile) {
    Context made = new_context();
    if (!made) throw problem(VAR_EDGE_FAILED, "no execution context");
    bool accepted = made->setOptimizationProfileAsync(std::int32_t(profile), cuda_->stream());
#if VAR_EDGE_SIZED_SCRATCH
    made->setDeviceMemoryV2(scratch_.data, std::int64_t(scratch_.bytes()));
#else
    made->setDeviceMemory(scratch_.data);
#endif
    for (const auto& [name, shape] : record_->profiles[profile]) {
        accepted = made->setInputShape(name.c_str(), dims_of(shape)) && accepted;
    }
    if (!accepted) {
        throw problem(VAR_EDGE_FAILED, "profile " + std::to_string(profile) + ": TensorRT refuses its shapes");
    }
    return made;
}

void LoadedEngine::check_tensors(const GraphSpec& graph) const {
    std::map<std::string, std::pair<Tensor, Tensor>> tensors;  // as expected, as found
    for (const TensorSpec& spec : graph.inputs) tensors[spec.name].first = {true, dtype_name(spec.dtype)};
    for (const TensorSpec& spec : graph.outputs) tensors[spec.name].first = {false, dtype_name(spec.dtype)};
    for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
        const char* name = engine_->getIOTensorName(i);
        const bool input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        tensors[name].second = {input, dtype_of(engine_->getTensorDataType(name))};
    }
    std::string differing;
    for (const auto& [name, both] : tensors) {
        if (both.first != both.second) differing += (differing.empty() ? "" : ", ") + name;
    }
    if (!differing.empty()) {
        throw bad_bundle(path_ + ": " + differing +
                         ": engine and manifest differ in name, direction or dtype; run make engine again");
    }
}

void LoadedEngine::check_profiles() const {
    const std::size_t expected = record_->profiles.size(), found = std::size_t(engine_->getNbOptimizationProfiles());
    if (expected != found) {
        throw bad_bundle(path_ + ": expected " + std::to_string(expected) + " profiles, found " +
                         std::to_string(found) + "; run make engine again");
    }
    using Selector = nvinfer1::OptProfileSelector;
    for (std::size_t i = 0; i < expected; ++i) {
        for (const auto& [name, shape] : record_->profiles[i]) {
            std::vector<Shape> shapes;
            for (Selector selector : {Selector::kMIN, Selector::kOPT, Selector::kMAX}) {
                shapes.push_back(shape_of(engine_->getProfileShape(name.c_str(), std::int32_t(i), selector)));
            }
            if (shapes == std::vector<Shape>(3, shape)) continue;
            throw bad_bundle(path_ + ": profile " + std::to_string(i) + ": " + name + ": expected " + text_of(shape) +
                             ", found " + text_of(shapes[0]) + " to " + text_of(shapes[2]) + "; run make engine again");
        }
    }
}

}  // namespace var_edge_impl
