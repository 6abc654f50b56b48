// ONNX Runtime: graphs work in place on arrays that are allocated once for a batch size. Twin of
// runtime/backends/onnxruntime.py and ort_session.py.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>

#include "backend.hpp"
#include "error.hpp"

namespace var_edge_impl {

namespace {

ONNXTensorElementDataType element_type(Dtype dtype) {
    constexpr ONNXTensorElementDataType types[] = {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,   ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
    return types[std::size_t(dtype)];
}

// One environment for the process: ONNX Runtime allows no second one beside it.
Ort::Env& environment() {
    static Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "var_edge");  // errors come back as exceptions
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
            throw failed(path_ + ": ONNX Runtime failed: " + one_line(error.what()));
        }
    }

  private:
    Ort::Session* session_;
    std::string path_;
    Ort::IoBinding binding_;
    std::vector<Ort::Value> values_;
};

using Specs = std::map<std::string, ONNXTensorElementDataType>;

Specs declared(const std::vector<TensorSpec>& tensors) {
    Specs specs;
    for (const TensorSpec& tensor : tensors) specs[tensor.name] = element_type(tensor.dtype);
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
            throw bad_bundle(path_ + ": ONNX Runtime " + Ort::GetVersionString() + " cannot load it: " + one_line(error.what()));
        }
        Ort::AllocatorWithDefaultOptions allocator;
        Specs inputs, outputs;
        for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
            const auto type = session_.GetInputTypeInfo(i);
            inputs[session_.GetInputNameAllocated(i, allocator).get()] = type.GetTensorTypeAndShapeInfo().GetElementType();
        }
        for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
            const auto type = session_.GetOutputTypeInfo(i);
            outputs[session_.GetOutputNameAllocated(i, allocator).get()] = type.GetTensorTypeAndShapeInfo().GetElementType();
        }
        agree("manifest", declared(graph.inputs), inputs);
        agree("manifest", declared(graph.outputs), outputs);
        inputs_ = std::move(inputs);
        outputs_ = std::move(outputs);
    }

    Bound bind(const Stage& stage) {
        agree("runtime", of(stage.inputs), inputs_);
        agree("runtime", of(stage.outputs), outputs_);
        return {session_, path_, stage};
    }

  private:
    static Specs of(const Tensors& tensors) {
        Specs specs;
        for (const auto& [name, array] : tensors) specs[name] = element_type(array.dtype);
        return specs;
    }

    void agree(const char* other, const Specs& expected, const Specs& found) const {
        std::string differing;
        const auto note = [&](const std::string& name) { differing += (differing.empty() ? "" : ", ") + name; };
        for (const auto& [name, type] : expected) {
            if (const auto same = found.find(name); same == found.end() || same->second != type) note(name);
        }
        for (const auto& [name, _] : found) {
            if (!expected.count(name)) note(name);
        }
        if (!differing.empty()) {
            throw bad_bundle(path_ + ": " + differing + ": the graph and the " + other +
                             " differ in name or dtype; export the bundle again");
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
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(asked.threads);  // 0: one per physical core
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
        throw unsupported(provider + ": " + one_line(error.what()));
    }
    return options;
}

// What handles share: the graphs with their weights, each opened when it is first wanted, and constants.
class Loaded {
  public:
    Loaded(var_edge_backend wanted, const std::filesystem::path& folder, const Manifest& its, const BackendOptions& options)
        : bundle(folder), manifest(its), log_(options.log), options_(session_options(wanted, options, log_)) {
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
        for (const std::string& graph : REQUIRED_GRAPHS) {
            session(graph);
            if (options.progress) options.progress(VAR_EDGE_LOADING, graph.c_str(), ++done, REQUIRED_GRAPHS.size());
        }
        constants = scale_constants(bundle, manifest, arrays_);
    }

    Session& session(const std::string& graph) {
        const std::lock_guard<std::mutex> lock(mutex_);
        auto found = sessions_.find(graph);
        if (found == sessions_.end()) found = sessions_.emplace(graph, Session(bundle, manifest.graphs.at(graph), options_)).first;
        return found->second;
    }

    const std::filesystem::path bundle;
    const Manifest manifest;
    std::string name;
    std::vector<ScaleConstants> constants;

  private:
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
        if (!batch_ || batch_->wiring.size != size || batch_->wiring.smooth != smooth) {
            batch_.reset();  // the arrays of the other kind first
            if (smooth) check_smooth(loaded_->manifest);
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

    void logits(std::size_t k, float* out) override {
        const auto tokens = loaded_->manifest.scales[k].tokens;
        batch_->arrays.download(out, batch_->wiring.logits.rows(0, tokens));
    }

    void decode(std::uint8_t* images, bool) override {
        for (Bound& decoder : batch_->decoders[std::size_t(batch_->latest) % 2]) run(decoder, "decoder");
        batch_->arrays.download(images, batch_->wiring.images);
    }

    void encode(const std::uint8_t* image, std::int32_t* tokens) override {
        const Manifest& manifest = loaded_->manifest;
        if (!manifest.graphs.count("encoder")) throw bad_bundle(loaded_->bundle.string() + ": this bundle has no encoder; export it again with one");
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
