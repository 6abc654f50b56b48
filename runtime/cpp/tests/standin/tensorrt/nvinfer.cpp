// A stand-in of TensorRT for tests without a GPU. An engine is a JSON text, as tests/runtime/fake_gpu.py writes it,
// that names an ONNX graph, its tensors and its profiles; ONNX Runtime runs the graph when the stream's turn comes.
// It refuses what TensorRT refuses or leaves undefined: see the messages.
#include <NvInferRuntime.h>
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "standin.hpp"

namespace {

using namespace nvinfer1;
using Severity = ILogger::Severity;
using Shape = std::vector<std::int64_t>;
using Problem = std::runtime_error;

constexpr std::int64_t SCRATCH = 4096;  // bytes of profile 0; profile i needs i + 1 times as much
constexpr std::size_t CONTEXT = 1024;   // bytes that a context takes
constexpr int USED_SCRATCH = 0xCD;
constexpr std::uintptr_t ALIGNMENT = 256;

struct Dtype {
    DataType type;
    ONNXTensorElementDataType onnx;
    std::size_t bytes;
};

const Dtype& dtype(const std::string& name) {
    static const std::map<std::string, Dtype> all = {
        {"float32", {DataType::kFLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4}},
        {"float16", {DataType::kHALF, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}},
        {"int64", {DataType::kINT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8}},
        {"int32", {DataType::kINT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4}},
        {"uint8", {DataType::kUINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1}},
        {"bool", {DataType::kBOOL, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1}}};
    return all.at(name);
}

std::size_t values(const Shape& shape) {
    std::size_t count = 1;
    for (std::int64_t axis : shape) count *= std::size_t(axis);
    return count;
}

Ort::Env& environment() {
    static Ort::Env& env = *[] {
        ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);
        Ort::InitApi(OrtGetApiBase()->GetApi(ORT_API_VERSION));
        return new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "standin");
    }();
    return env;
}

struct Tensor {
    std::string name;
    bool input;
    Dtype dtype;
};

// What an engine's file says, and what runs it. Work on a stream may outlive the objects of the interface.
struct Plan {
    explicit Plan(const std::string& text) {
        environment();  // before `session` is destroyed
        const nlohmann::json json = nlohmann::json::parse(text);
        graph = json.at("graph");
        for (const auto& [name, of] : json.at("tensors").items()) {
            tensors.push_back({name, of.at(0) == "in", dtype(of.at(1))});
        }
        profiles = json.at("profiles").get<std::vector<std::map<std::string, Shape>>>();
        Ort::SessionOptions options;
        options.AddConfigEntry("session.disable_quant_qdq", "1");  // exact, as on a GPU
        options.SetIntraOpNumThreads(1);
        options.DisableMemPattern();
        session = Ort::Session(environment(), json.at("onnx").get<std::string>().c_str(), options);
    }

    const Tensor* find(const std::string& name) const {
        const auto same = [&](const Tensor& tensor) { return tensor.name == name; };
        const auto found = std::find_if(tensors.begin(), tensors.end(), same);
        return found == tensors.end() ? nullptr : &*found;
    }

    std::string graph;
    std::vector<Tensor> tensors;
    std::vector<std::map<std::string, Shape>> profiles;
    Ort::Session session{nullptr};
};

// One run of a graph on addresses of the GPU.
struct Run {
    std::shared_ptr<Plan> plan;
    std::weak_ptr<bool> context;  // whose memory the kernels use
    std::map<std::string, void*> addresses;
    std::map<std::string, Shape> shapes;
    void* scratch;
    std::size_t scratch_bytes;

    std::string operator()() const {
        if (context.expired()) return "its context was destroyed";
        if (const std::string wrong = standin::trouble(scratch, scratch_bytes); !wrong.empty()) {
            return "scratch memory " + wrong;
        }
        const auto host = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        std::vector<const char*> inputs, outputs;
        std::vector<Ort::Value> given;
        std::vector<std::pair<std::uintptr_t, std::size_t>> taken = {{std::uintptr_t(scratch), scratch_bytes}};
        for (const Tensor& tensor : plan->tensors) {
            if (!tensor.input) {
                outputs.push_back(tensor.name.c_str());
                continue;
            }
            const Shape& shape = shapes.at(tensor.name);
            const std::size_t bytes = values(shape) * tensor.dtype.bytes;
            void* const address = addresses.at(tensor.name);
            if (const std::string wrong = standin::trouble(address, bytes); !wrong.empty()) {
                return tensor.name + " " + wrong;
            }
            inputs.push_back(tensor.name.c_str());
            given.push_back(
                Ort::Value::CreateTensor(host, address, bytes, shape.data(), shape.size(), tensor.dtype.onnx));
            taken.emplace_back(std::uintptr_t(address), bytes);
        }
        std::vector<Ort::Value> made;
        try {
            made = plan->session.Run(Ort::RunOptions{nullptr}, inputs.data(), given.data(), given.size(),
                                     outputs.data(), outputs.size());
        } catch (const Ort::Exception& error) {
            return error.what();
        }
        for (std::size_t i = 0; i < outputs.size(); ++i) {
            const std::size_t bytes =
                values(made[i].GetTensorTypeAndShapeInfo().GetShape()) * plan->find(outputs[i])->dtype.bytes;
            void* const address = addresses.at(outputs[i]);
            if (const std::string wrong = standin::trouble(address, bytes); !wrong.empty()) {
                return std::string(outputs[i]) + " " + wrong;
            }
            for (const auto& [start, size] : taken) {
                if (std::uintptr_t(address) < start + size && start < std::uintptr_t(address) + bytes) {
                    return std::string(outputs[i]) + " lies in memory that the same run uses";
                }
            }
            taken.emplace_back(std::uintptr_t(address), bytes);
            std::memcpy(address, made[i].GetTensorRawData(), bytes);
        }
        std::memset(scratch, USED_SCRATCH, scratch_bytes);
        return "";
    }
};

class HostMemory final : public IHostMemory {
  public:
    explicit HostMemory(std::string text) : text_(std::move(text)) {}
    void* data() const noexcept override { return const_cast<char*>(text_.data()); }
    std::size_t size() const noexcept override { return text_.size(); }

  private:
    std::string text_;
};

#ifdef TRT_MAJOR_RTX
// Kernels are names here: of the graph and the profile that they were compiled for.
class RuntimeCache final : public IRuntimeCache {
  public:
    explicit RuntimeCache(std::weak_ptr<bool> runtime) : runtime_(std::move(runtime)) {}
    ~RuntimeCache() override {
        if (runtime_.expired()) std::abort();  // the runtime must outlive its caches
    }

    IHostMemory* serialize() const noexcept override {
        standin::trace("serialize kernels");
        return new HostMemory(nlohmann::json(*kernels).dump());
    }
    bool deserialize(const void* blob, std::size_t size) noexcept override {
        const auto json = nlohmann::json::parse(std::string(static_cast<const char*>(blob), size), nullptr, false);
        if (!json.is_array()) return false;
        *kernels = json.get<std::set<std::string>>();
        return true;
    }
    void reset() noexcept override { kernels->clear(); }

    std::shared_ptr<std::set<std::string>> kernels = std::make_shared<std::set<std::string>>();

  private:
    std::weak_ptr<bool> runtime_;
};

class RuntimeConfig final : public IRuntimeConfig {
  public:
    explicit RuntimeConfig(std::weak_ptr<bool> runtime) : runtime_(std::move(runtime)) {}
    void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy wanted) noexcept override {
        strategy = wanted;
    }
    void setDynamicShapesKernelSpecializationStrategy(
        DynamicShapesKernelSpecializationStrategy wanted) noexcept override {
        kernels = wanted;
    }
    IRuntimeCache* createRuntimeCache() const noexcept override { return new RuntimeCache(runtime_); }
    bool setRuntimeCache(const IRuntimeCache& wanted) noexcept override {
        cache = static_cast<const RuntimeCache&>(wanted).kernels;
        return true;
    }

    ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC;
    DynamicShapesKernelSpecializationStrategy kernels = DynamicShapesKernelSpecializationStrategy::kLAZY;
    std::shared_ptr<std::set<std::string>> cache;
    std::shared_ptr<bool> alive = std::make_shared<bool>(true);

  private:
    std::weak_ptr<bool> runtime_;
};
#endif

// What the objects of one engine share.
struct Shared {
    std::shared_ptr<Plan> plan;
    ILogger* log;
    std::weak_ptr<bool> runtime;
    std::set<std::int32_t> profiles_in_use;

    void error(const std::string& text) const {
        log->log(Severity::kERROR,
                 ("[standin] Error Code 3: API Usage Error (" + plan->graph + ": " + text + ")").c_str());
    }
};

std::int64_t scratch_of(std::int32_t profile) { return SCRATCH * (profile + 1); }

class Context final : public IExecutionContext {
  public:
    Context(std::shared_ptr<Shared> engine, void* memory) : engine_(std::move(engine)), memory_(memory) {}
    ~Context() override {
        engine_->profiles_in_use.erase(profile_);
        cudaFree(memory_);
    }

    bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t) noexcept override {
        if (profile < 0 || std::size_t(profile) >= engine_->plan->profiles.size()) return refuse("no such profile");
        if (!engine_->profiles_in_use.insert(profile).second) return refuse("another context uses the profile");
        engine_->profiles_in_use.erase(profile_);
        profile_ = profile;
        scratch_ = nullptr;
        shapes_.clear();
        warm_ = false;
        return true;
    }

    void setDeviceMemory(void* memory) noexcept override { give(memory, scratch_of(profile_)); }
#if STANDIN_MINOR >= 1
    void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override { give(memory, size); }
#endif

    bool setInputShape(const char* name, const Dims& dims) noexcept override {
        if (!scratch_) return refuse("a shape before the scratch memory");
        const auto& profile = engine_->plan->profiles[std::size_t(profile_)];
        const auto expected = profile.find(name);
        const Shape shape(dims.d, dims.d + dims.nbDims);
        if (expected == profile.end() || expected->second != shape) return refuse(std::string(name) + ": its shape");
        shapes_[name] = shape;
        return true;
    }

    bool setTensorAddress(const char* name, void* data) noexcept override {
        if (!engine_->plan->find(name)) return refuse(std::string(name) + ": no such tensor");
        if (!data || std::uintptr_t(data) % ALIGNMENT)
            return refuse(std::string(name) + ": is not aligned to 256 bytes");
        addresses_[name] = data;
        return true;
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (engine_->runtime.expired()) return refuse("the runtime was destroyed before its engine");
        if (config_ && config_->expired()) return refuse("the runtime config was destroyed before its context");
        for (const Tensor& tensor : engine_->plan->tensors) {
            if (!addresses_.count(tensor.name)) return refuse(tensor.name + ": has no address");
            if (tensor.input && !shapes_.count(tensor.name)) return refuse(tensor.name + ": has no shape");
        }
        if (!warm_ && standin::is_capturing(stream)) {
            standin::spoil(stream);
            return refuse("the first run of a context, which allocates, was captured");
        }
        warm_ = true;
        const std::string name = engine_->plan->graph + " " + std::to_string(profile_);
        const Run run = {engine_->plan, alive_, addresses_, shapes_, scratch_, scratch_bytes_};
        return standin::queue_kernel(stream, name, run) == cudaSuccess;
    }

    void keep(std::weak_ptr<bool> config) { config_ = std::make_unique<std::weak_ptr<bool>>(std::move(config)); }

  private:
    bool refuse(const std::string& why) const {
        engine_->error(why);
        return false;
    }

    void give(void* memory, std::int64_t size) {
        if (profile_ < 0) engine_->error("scratch memory before the profile");
        else if (std::uintptr_t(memory) % ALIGNMENT) engine_->error("scratch memory is not aligned to 256 bytes");
        else if (size < scratch_of(profile_)) engine_->error("too little scratch memory");
        else {
            scratch_ = memory;
            scratch_bytes_ = std::size_t(scratch_of(profile_));
        }
    }

    std::shared_ptr<Shared> engine_;
    void* memory_;  // so that contexts take the GPU's memory
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
    std::unique_ptr<std::weak_ptr<bool>> config_;
    std::int32_t profile_ = -1;
    void* scratch_ = nullptr;
    std::size_t scratch_bytes_ = 0;
    std::map<std::string, Shape> shapes_;
    std::map<std::string, void*> addresses_;
    bool warm_ = false;
};

class CudaEngine final : public ICudaEngine {
  public:
    CudaEngine(std::shared_ptr<Shared> shared, void* weights) : shared_(std::move(shared)), weights_(weights) {}
    ~CudaEngine() override {
        if (shared_->runtime.expired()) std::abort();  // the runtime must outlive its engines
        cudaFree(weights_);
    }

    std::int32_t getNbIOTensors() const noexcept override { return std::int32_t(plan().tensors.size()); }
    const char* getIOTensorName(std::int32_t index) const noexcept override {
        return plan().tensors[std::size_t(index)].name.c_str();
    }
    TensorIOMode getTensorIOMode(const char* name) const noexcept override {
        const Tensor* tensor = plan().find(name);
        return !tensor ? TensorIOMode::kNONE : tensor->input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(const char* name) const noexcept override { return plan().find(name)->dtype.type; }
    std::int32_t getNbOptimizationProfiles() const noexcept override { return std::int32_t(plan().profiles.size()); }
    Dims getProfileShape(const char* name, std::int32_t profile, OptProfileSelector) const noexcept override {
        const auto& shapes = plan().profiles[std::size_t(profile)];
        const auto found = shapes.find(name);
        if (found == shapes.end()) return {-1, {}};
        Dims dims{std::int32_t(found->second.size()), {}};
        std::copy(found->second.begin(), found->second.end(), dims.d);
        return dims;
    }
#if STANDIN_MINOR >= 1
    std::int64_t getDeviceMemorySizeForProfileV2(std::int32_t profile) const noexcept override {
        return scratch_of(profile);
    }
#else
    std::size_t getDeviceMemorySizeForProfile(std::int32_t profile) const noexcept override {
        return std::size_t(scratch_of(profile));
    }
#endif

#ifdef TRT_MAJOR_RTX
    IRuntimeConfig* createRuntimeConfig() noexcept override { return new RuntimeConfig(shared_->runtime); }
    IExecutionContext* createExecutionContext(IRuntimeConfig* wanted) noexcept override {
        const auto& config = static_cast<const RuntimeConfig&>(*wanted);
        if (config.kernels != DynamicShapesKernelSpecializationStrategy::kEAGER) {
            shared_->error("a recording would keep the slower kernels of a strategy that is not kEAGER");
            return nullptr;
        }
        Context* context = made(config.strategy);
        if (!context) return nullptr;
        context->keep(config.alive);
        if (!config.cache || config.cache->insert(plan().graph).second) standin::trace("compile " + plan().graph);
        return context;
    }
#else
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
        return made(strategy);
    }
#endif

  private:
    const Plan& plan() const { return *shared_->plan; }

    Context* made(ExecutionContextAllocationStrategy strategy) {
        if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) {
            shared_->error("scratch memory for each context, where all could share it");
            return nullptr;
        }
        void* memory = nullptr;
        if (!cudaMalloc(&memory, CONTEXT)) return new Context(shared_, memory);
        shared_->error("Cuda Runtime (out of memory)");
        return nullptr;
    }

    std::shared_ptr<Shared> shared_;
    void* weights_;  // so that engines take the GPU's memory
};

// Everything that the reader has, as each generation reads it. Returns what it read.
#if STANDIN_MINOR >= 7
std::string read_all(IStreamReaderV2& reader) {
    constexpr std::int64_t HEAD = 7;
    const auto checked = [](std::int64_t count, std::int64_t least) {
        if (count < least)
            throw Problem("Serialization (expected " + std::to_string(least) + " bytes, found " +
                          std::to_string(count) + ")");
        return std::size_t(count);
    };
    const std::string how = standin::variable("STANDIN_READER", "short");
    // Reads of some bytes until there are no more.
    std::string text, piece(how == "short" ? HEAD : 1 << 20, 0);
    const auto next = [&] { return checked(reader.read(piece.data(), std::int64_t(piece.size()), nullptr), 0); };
    while (const std::size_t count = next()) text.append(piece, 0, count);
    if (!reader.seek(-1, SeekPosition::kEND) || !reader.seek(0, SeekPosition::kSET)) throw Problem("seek");
    if (how == "short") return text;
    // The head again, then the rest at once: into the host's memory or the GPU's, and not asked for twice.
    const std::size_t head = std::min(std::size_t(HEAD), text.size()), rest = text.size() - head;
    std::string whole(text.size(), 0);
    checked(reader.read(whole.data(), std::int64_t(head), nullptr), std::int64_t(head));
    if (how == "huge") {
        checked(reader.read(whole.data() + head, std::int64_t(rest), nullptr), std::int64_t(rest));
        return whole;
    }
    void* device = nullptr;
    cudaStream_t stream = nullptr;
    if (cudaMalloc(&device, rest)) throw Problem("Cuda Runtime (out of memory)");
    const std::unique_ptr<void, cudaError_t (*)(void*)> owned(device, cudaFree);
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    const std::int64_t count = reader.read(device, std::int64_t(rest), stream);
    cudaMemcpyAsync(whole.data() + head, device, rest, cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
    checked(count, std::int64_t(rest));
    return whole;
}
#endif

#ifndef TRT_MAJOR_RTX
// TensorRT 10.3 asks once, for all that there may be.
std::string read_all(IStreamReader& reader) {
    constexpr std::int64_t MOST = 256 << 20;
    const std::unique_ptr<char[]> text(new char[MOST]);  // pages that nothing is written to take no memory
    const std::int64_t count = reader.read(text.get(), MOST);
    if (count < 0) throw Problem("Serialization (the stream cannot be read)");
    return {text.get(), std::size_t(count)};
}
#endif

class Runtime final : public IRuntime {
  public:
    explicit Runtime(ILogger& log) : log_(&log) {}

    void setEngineHostCodeAllowed(bool) noexcept override {}
#if STANDIN_MINOR >= 7
    ICudaEngine* deserializeCudaEngine(IStreamReaderV2& reader) override { return engine(reader); }
#endif
#ifndef TRT_MAJOR_RTX
    ICudaEngine* deserializeCudaEngine(IStreamReader& reader) override { return engine(reader); }
#endif

  private:
    template <typename Reader>
    ICudaEngine* engine(Reader& reader) {
        try {
            const std::string text = read_all(reader);
            if (text.empty() || text[0] != '{') throw Problem("Serialization (magicTag: the plan is no engine)");
            void* weights = nullptr;
            if (cudaMalloc(&weights, text.size())) throw Problem("Cuda Runtime (out of memory)");
            auto plan = std::make_shared<Plan>(text);
            auto shared = std::make_shared<Shared>(Shared{std::move(plan), log_, alive_, {}});
            return new CudaEngine(std::move(shared), weights);
        } catch (const std::exception& error) {
            log_->log(Severity::kERROR, (std::string("[standin] Error Code 1: ") + error.what()).c_str());
            return nullptr;
        }
    }

    ILogger* log_;
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace

nvinfer1::IRuntime* nvinfer1::createInferRuntime(ILogger& logger) noexcept { return new Runtime(logger); }

extern "C" {
std::int32_t getInferLibMajorVersion() noexcept { return NV_TENSORRT_MAJOR; }
std::int32_t getInferLibMinorVersion() noexcept { return NV_TENSORRT_MINOR; }
std::int32_t getInferLibPatchVersion() noexcept { return NV_TENSORRT_PATCH; }
std::int32_t getInferLibBuildVersion() noexcept { return NV_TENSORRT_BUILD; }
}
