// ONNX Runtime: graphs work in place on arrays that are allocated once for a batch size. Twin of
// runtime/backends/onnxruntime.py and ort_session.py.
#define ORT_API_MANUAL_INIT  // see environment()
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "backends/base.hpp"
#include "files/bounded.hpp"
#include "errors.hpp"
#include "runtime/processors.hpp"

namespace var_edge_impl {

namespace {

ONNXTensorElementDataType element_type(Dtype dtype) {
    constexpr ONNXTensorElementDataType types[] = {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,   ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
    return types[std::size_t(dtype)];
}

Error engine_error(var_edge_status status, const std::string& what, const Ort::Exception& error) {
    return {tells_out_of_memory(error.what()) ? VAR_EDGE_OUT_OF_MEMORY : status, what + ": " + error.what()};
}

// ONNX Runtime makes a device's identifier and a database of events when its environment is created, unless this is set. It
// is set while the library is loaded, when there is one thread still: setting it beside threads that read the environment
// is not safe. A value of the application's stays.
__attribute__((constructor(101))) void no_telemetry() { ::setenv("ORT_DISABLE_TELEMETRY", "1", 0); }

constexpr int OLDEST = VAR_EDGE_ONNXRUNTIME_API;  // the minor version that first reads these graphs and has every call made here

// One environment for the process: ONNX Runtime allows no second one beside it.
Ort::Env& environment() {
    static Ort::Env env = [] {
        const OrtApiBase* base = OrtGetApiBase();
        const char* version = base->GetVersionString();
        int major = 0, minor = 0;
        std::sscanf(version, "%d.%d", &major, &minor);
        const bool known = major > 1 || (major == 1 && minor >= OLDEST);  // asked for an unknown one it prints
        const OrtApi* api = known ? base->GetApi(OLDEST) : nullptr;
        if (!api) throw unsupported(std::string("ONNX Runtime ") + version + ": expected 1." + std::to_string(OLDEST) + " or later; install a newer one");
        Ort::InitApi(api);
        if (!std::getenv("ORT_DISABLE_TELEMETRY")) no_telemetry();
        return Ort::Env(ORT_LOGGING_LEVEL_FATAL, "var_edge");  // errors come back as exceptions
    }();
    return env;
}

// A graph bound to its arrays, ready to run.
class Bound {
  public:
    Bound(Ort::Session& session, const std::string& path, const Stage& stage) : session_(&session), path_(path), binding_(session) {
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        for (const auto* tensors : {&stage.inputs, &stage.outputs}) {
            for (const auto& [name, array] : *tensors) {
                values_.push_back(Ort::Value::CreateTensor(memory, array.data, array.bytes(), array.shape.data(),
                                                           array.shape.size(), element_type(array.dtype)));
                if (tensors == &stage.inputs) binding_.BindInput(name.c_str(), values_.back());
                else binding_.BindOutput(name.c_str(), values_.back());
            }
        }
    }

    void run(const Ort::RunOptions& options) {
        try {
            session_->Run(options, binding_);
        } catch (const Ort::Exception& error) {
            throw engine_error(VAR_EDGE_FAILED, path_ + ": ONNX Runtime failed", error);
        }
    }

  private:
    Ort::Session* session_;
    std::string path_;
    Ort::IoBinding binding_;
    std::vector<Ort::Value> values_;
};

struct Spec {
    ONNXTensorElementDataType type;
    Shape shape;  // -1: any size

    bool fits(const Spec& other) const {
        const auto agree = [](std::int64_t a, std::int64_t b) { return a == b || a < 0 || b < 0; };
        return type == other.type && std::equal(shape.begin(), shape.end(), other.shape.begin(), other.shape.end(), agree);
    }
};
using Specs = std::map<std::string, Spec>;

Specs declared(const std::vector<TensorSpec>& tensors) {
    Specs specs;
    for (const TensorSpec& tensor : tensors) {
        Spec& spec = specs[tensor.name] = {element_type(tensor.dtype), {}};
        for (const Axis& axis : tensor.shape) spec.shape.push_back(std::holds_alternative<std::int64_t>(axis) ? std::get<std::int64_t>(axis) : -1);
    }
    return specs;
}

// A graph of a bundle, checked against the manifest.
class Session {
  public:
    Session(const std::filesystem::path& bundle, const GraphSpec& graph, const Ort::SessionOptions& options)
        : path_((bundle / graph.file).string()) {
        try {
            session_ = Ort::Session(environment(), path_.c_str(), options);
        } catch (const Ort::Exception& error) {
            throw engine_error(VAR_EDGE_BAD_BUNDLE, path_ + ": ONNX Runtime " + Ort::GetVersionString() + " cannot load it", error);
        }
        const Ort::AllocatorWithDefaultOptions allocator;
        for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
            add(inputs_, session_.GetInputNameAllocated(i, allocator).get(), session_.GetInputTypeInfo(i));
        }
        for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
            add(outputs_, session_.GetOutputNameAllocated(i, allocator).get(), session_.GetOutputTypeInfo(i));
        }
        agree("manifest", declared(graph.inputs), inputs_);
        agree("manifest", declared(graph.outputs), outputs_);
    }

    // Throws Error BAD_BUNDLE unless the graph takes the stage's arrays.
    void check(const Stage& stage) const {
        agree("runtime", of(stage.inputs), inputs_);
        agree("runtime", of(stage.outputs), outputs_);
    }

    Bound bind(const Stage& stage) {
        check(stage);
        return {session_, path_, stage};
    }

  private:
    static Specs of(const Tensors& tensors) {
        Specs specs;
        for (const auto& [name, array] : tensors) specs[name] = {element_type(array.dtype), array.shape};
        return specs;
    }

    // A sequence or an optional has no element type to ask for.
    void add(Specs& specs, const std::string& name, const Ort::TypeInfo& type) const {
        if (type.GetONNXType() != ONNX_TYPE_TENSOR) throw bad_bundle(path_ + ": " + name + ": expected a tensor; export the bundle again");
        const auto tensor = type.GetTensorTypeAndShapeInfo();
        specs[name] = {tensor.GetElementType(), tensor.GetShape()};
    }

    void agree(const char* other, const Specs& expected, const Specs& found) const {
        std::string differing;
        const auto note = [&](const std::string& name) { differing += (differing.empty() ? "" : ", ") + name; };
        for (const auto& [name, spec] : expected) {
            if (const auto same = found.find(name); same == found.end() || !same->second.fits(spec)) note(name);
        }
        for (const auto& [name, _] : found) {
            if (!expected.count(name)) note(name);
        }
        if (!differing.empty()) {
            throw bad_bundle(path_ + ": " + differing + ": the graph and the " + other +
                             " differ in name, dtype or shape; export the bundle again");
        }
    }

    std::string path_;
    Ort::Session session_{nullptr};
    Specs inputs_, outputs_;
};

// What ONNX Runtime says goes to the caller's log, from whichever thread it comes.
void ORT_API_CALL hear(void* log, OrtLoggingLevel severity, const char*, const char*, const char* place, const char* message) {
    const int level = std::min(int(severity) - int(ORT_LOGGING_LEVEL_INFO), int(VAR_EDGE_LOG_ERROR));
    try {
        (*static_cast<Log*>(log))(level, one_line(std::string("ONNX Runtime: ") + message + " (" + place + ")"));
    } catch (...) {  // a log that throws is not ONNX Runtime's affair
    }
}

OrtLoggingLevel severity(int level) {
    return OrtLoggingLevel(std::clamp(level + int(ORT_LOGGING_LEVEL_INFO), int(ORT_LOGGING_LEVEL_VERBOSE), int(ORT_LOGGING_LEVEL_FATAL)));
}

template <typename Options>
Options provider_options(const BackendOptions& asked, bool use_provider) {
    Options options;
    std::unordered_map<std::string, std::string> values;
    if (use_provider) values.insert(asked.provider.begin(), asked.provider.end());
    if (asked.device >= 0) values["device_id"] = std::to_string(asked.device);
    options.Update(values);
    if (asked.stream) options.UpdateWithValue("user_compute_stream", asked.stream);
    return options;
}

// `log` outlives every session.
Ort::SessionOptions session_options(var_edge_backend wanted, const BackendOptions& asked, Log& log) {
    environment();  // before any other call of ONNX Runtime's
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(asked.threads ? asked.threads : usable_cpus());
    // The graphs take turns: idle threads of one session that keep spinning take the cores of the next.
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");
    // A pattern is remembered for every shape, here for every scale: memory for no speed.
    options.DisableMemPattern();
    // INT8 weights alone: by default ONNX Runtime rounds the activations to 8 bits as well.
    options.AddConfigEntry("session.qdq_matmulnbits_accuracy_level", "1");
    options.SetLogSeverityLevel(severity(asked.log_level));
    Ort::ThrowOnError(Ort::GetApi().SetUserLoggingFunction(options, hear, &log));
    if (wanted == VAR_EDGE_ONNXRUNTIME) {
        if (!asked.provider.empty()) throw bad_argument("provider_options: expected NULL, as the CPU has none");
        return options;
    }

    const bool tensorrt = wanted == VAR_EDGE_ONNXRUNTIME_TENSORRT;
    const std::string provider = tensorrt ? "TensorrtExecutionProvider" : "CUDAExecutionProvider";
    const auto available = Ort::GetAvailableProviders();
    if (std::find(available.begin(), available.end(), provider) == available.end()) {
        throw unsupported("this ONNX Runtime has no " + provider + "; link a build that has it, or use another backend");
    }
    try {
        if (tensorrt) {
            const auto chosen = provider_options<Ort::TensorRTProviderOptions>(asked, true);
            options.AppendExecutionProvider_TensorRT_V2(*chosen);
        }
        const auto chosen = provider_options<Ort::CUDAProviderOptions>(asked, !tensorrt);
        options.AppendExecutionProvider_CUDA_V2(*chosen);
    } catch (const Ort::Exception& error) {
        throw engine_error(VAR_EDGE_UNSUPPORTED, provider, error);
    }
    return options;
}

// What handles share: the graphs with their weights, each opened when it is first wanted, and constants.
class Loaded {
  public:
    Loaded(var_edge_backend wanted, const std::filesystem::path& folder, const Manifest& its, const BackendOptions& options)
        : bundle(folder), manifest(its), weights(folder / WEIGHTS), verify_(options.verify), log_(options.log),
          options_(session_options(wanted, options, log_)) {
        name = "ONNX Runtime " + Ort::GetVersionString();
        if (wanted == VAR_EDGE_ONNXRUNTIME_CUDA) name += ", CUDA execution provider";
        if (wanted == VAR_EDGE_ONNXRUNTIME_TENSORRT) name += ", TensorRT execution provider";
        for (const auto& [_, graph] : manifest.graphs) {
            const std::string suffix = ".onnx";
            if (graph.file.size() < suffix.size() || graph.file.substr(graph.file.size() - suffix.size()) != suffix) {
                throw bad_bundle(bundle.string() + ": holds engines (" + graph.file + "), which only the TensorRT backend runs");
            }
        }
        std::uint64_t done = 0;
        for (const char* graph : REQUIRED_GRAPHS) {
            sessions_.emplace(graph, open(graph));
            if (options.progress) options.progress(VAR_EDGE_LOADING, graph, ++done, REQUIRED_GRAPHS.size());
        }
        constants = scale_constants(bundle, manifest, arrays_);
        check_shapes(false);
    }

    // A graph that is not open yet is opened: only who encodes or draws smoothly pays for it.
    Session& session(const std::string& graph) {
        const std::lock_guard<std::mutex> lock(mutex_);
        auto found = sessions_.find(graph);
        if (found == sessions_.end()) found = sessions_.emplace(graph, open_later(graph)).first;
        return found->second;
    }

    // Throws Error BAD_BUNDLE unless there is a graph for smooth sampling that fits.
    void require_smooth() {
        check_smooth(manifest);
        session(SMOOTH_BRIDGE);
        check_shapes(true);
    }

    const std::filesystem::path bundle;
    const Manifest manifest;
    const InputFile weights;  // ONNX Runtime maps the file: an alteration of it alters what is drawn
    std::string name;
    std::vector<ScaleConstants> constants;

  private:
    Session open(const std::string& graph) const { return {bundle, manifest.graphs.at(graph), options_}; }

    // What was checked when the bundle was loaded is read only now.
    Session open_later(const std::string& graph) const {
        manifest.check_still(bundle, manifest.graphs.at(graph).file, verify_);
        manifest.check_still(bundle, WEIGHTS, verify_);
        return open(graph);
    }

    // Throws Error BAD_BUNDLE unless the graphs take the arrays that the manifest's sizes call for, before they are allocated.
    void check_shapes(bool smooth) {
        NoArrays none;
        for (const Stage& stage : Wiring(1, smooth, manifest, constants, none).stages()) session(stage.graph).check(stage);
    }

    const bool verify_;
    Log log_;
    Ort::SessionOptions options_;
    HostArrays arrays_;
    std::mutex mutex_;
    std::map<std::string, Session> sessions_;
};

class OnnxRuntimeBackend final : public Backend {
  public:
    explicit OnnxRuntimeBackend(std::shared_ptr<Loaded> loaded) : loaded_(std::move(loaded)) {}

    std::string name() const override { return loaded_->name; }
    std::unique_ptr<Backend> share() const override { return std::make_unique<OnnxRuntimeBackend>(loaded_); }
    void stop(bool wanted) override { wanted ? run_options_.SetTerminate() : run_options_.UnsetTerminate(); }
    bool on_device() const override { return false; }
    const std::vector<std::int64_t>& batches() const override { return any_; }

    void begin(const std::vector<std::int64_t>& labels, bool smooth) override {
        const auto size = std::int64_t(labels.size());
        loaded_->weights.check_unchanged();
        if (!batch_ || batch_->wiring.size != size || batch_->wiring.smooth != smooth) {
            batch_.reset();  // the arrays of the other kind first
            if (smooth) loaded_->require_smooth();
            batch_ = std::make_unique<Batch>(size, smooth, *this);
        }
        batch_->latest = -1;
        batch_->wiring.set_labels(labels.data());
        batch_->wiring.start();
        run(batch_->condition, "condition");
    }

    void step(std::size_t k, const Draw& draw, const Sampling& sampling) override {
        batch_->wiring.set_scale(k, draw, sampling);
        batch_->wiring.settings[k].upload();
        run(batch_->steps[k].first, "transformer", std::int64_t(k));
        run(batch_->steps[k].second, batch_->wiring.smooth ? SMOOTH_BRIDGE : "bridge", std::int64_t(k));
        batch_->latest = std::int64_t(k);
    }

    void tokens(std::size_t k, std::int32_t* out) override { batch_->arrays.download(out, batch_->wiring.tokens[k]); }

    void drawn(std::size_t k, std::int32_t* out) override { batch_->arrays.download(out, batch_->wiring.drawn[k]); }

    void logits(std::size_t k, float* out) override {
        batch_->arrays.download(out, batch_->wiring.logits.rows(0, loaded_->manifest.scales[k].tokens));
    }

    std::vector<std::uint8_t> finite() override { return batch_->wiring.finite(); }

    void decode(std::uint8_t* images, bool) override {
        for (Bound& decoder : batch_->decoders[std::size_t(batch_->latest) % 2]) run(decoder, "decoder");
        batch_->arrays.download(images, batch_->wiring.images);
    }

    void encode(const std::uint8_t* image, std::int32_t* tokens) override {
        const Manifest& manifest = loaded_->manifest;
        if (!manifest.graphs.count("encoder")) throw bad_bundle(loaded_->bundle.string() + ": this bundle has no encoder; export it again with one");
        loaded_->weights.check_unchanged();
        HostArrays arrays;
        const std::int64_t side = manifest.model.image_size;
        const Array in = arrays.zeros({1, side, side, 3}, Dtype::uint8), out = arrays.zeros({1, manifest.model.tokens()}, Dtype::int32);
        std::memcpy(in.data, image, in.bytes());
        Bound encoder = loaded_->session("encoder").bind({"encoder", {{"image", in}}, {{"tokens", out}}});
        run(encoder, "encoder");
        arrays.download(tokens, out);
    }

  private:
    // The stages of one batch size, bound to their arrays.
    struct Batch {
        Batch(std::int64_t size, bool smooth, OnnxRuntimeBackend& backend)
            : wiring(size, smooth, backend.loaded_->manifest, backend.loaded_->constants, arrays), condition(backend.bind(wiring.condition)) {
            for (const auto& [transformer, bridge] : wiring.steps) steps.emplace_back(backend.bind(transformer), backend.bind(bridge));
            for (std::size_t k : {0, 1}) {  // by f_hat's turn
                for (const Stage& stage : wiring.decoders(k)) decoders[k].push_back(backend.bind(stage));
            }
        }

        HostArrays arrays;
        Wiring wiring;
        Bound condition;
        std::vector<std::pair<Bound, Bound>> steps;
        std::vector<Bound> decoders[2];
        std::int64_t latest = -1;  // the scale stepped last
    };

    Bound bind(const Stage& stage) { return loaded_->session(stage.graph).bind(stage); }

    void run(Bound& graph, const char* stage, std::int64_t scale = -1) {
        const auto start = std::chrono::steady_clock::now();
        graph.run(run_options_);
        if (on_stage) on_stage(stage, scale, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }

    std::shared_ptr<Loaded> loaded_;
    Ort::RunOptions run_options_;
    std::vector<std::int64_t> any_;
    std::unique_ptr<Batch> batch_;
};

}  // namespace

std::unique_ptr<Backend> create_onnxruntime(var_edge_backend wanted, const std::filesystem::path& bundle,
                                            const Manifest& manifest, const BackendOptions& options) {
    return std::make_unique<OnnxRuntimeBackend>(std::make_shared<Loaded>(wanted, bundle, manifest, options));
}

}  // namespace var_edge_impl
