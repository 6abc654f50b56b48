// TensorRT: everything stays on the GPU, and each stage is one CUDA graph, recorded once and launched from then on. Twin of
// runtime/backends/tensorrt.py.
#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstring>
#include <utility>

#include "backends/base.hpp"
#include "backends/cuda.hpp"
#include "bundle/engine_record.hpp"
#include "errors.hpp"
#include "files/fingerprint.hpp"
#include "backends/trt_engine.hpp"

namespace var_edge_impl {

namespace fs = std::filesystem;

namespace {

// "8.7" as numbers; what is no capability compares as larger than any.
std::pair<int, int> number(const std::string& capability) {
    int major = INT_MAX, minor = INT_MAX;
    return std::sscanf(capability.c_str(), "%d.%d", &major, &minor) == 2 ? std::pair(major, minor) : std::pair(INT_MAX, INT_MAX);
}

std::string architecture(std::string capability) {
    capability.erase(std::remove(capability.begin(), capability.end(), '.'), capability.end());
    return "sm_" + capability;
}

// A record's version may leave out the build number.
bool same_version(const std::string& built, const std::string& here) {
    return (here + ".").compare(0, built.size() + 1, built + ".") == 0;
}

// Throws Error BAD_BUNDLE unless these engines were built for this GPU and this TensorRT, UNSUPPORTED if this library has
// the other TensorRT.
void check_machine(const fs::path& folder, const EngineRecord& record, const Gpu& gpu) {
    const Built& built = record.built;
    const std::string where = folder.string(), again = "; run make engine on this machine", here = tensorrt_version();
    if (built.flavour != FLAVOUR) {
        throw unsupported(where + ": engines of " + built.flavour + ", this library was built with " + FLAVOUR +
                          "; build it with -DTensorRT_ROOT= of the other, or the engines with --trt");
    }
    const bool same_line = built.version_compatible && here.substr(0, here.find('.')) == built.version.substr(0, built.version.find('.'));
    if (!same_version(built.version, here) && !same_line) {
        throw bad_bundle(where + ": built with " + built.flavour + " " + built.version + ", here is " + here + again);
    }
    const std::vector<std::string>& wanted = built.compute_capabilities;
    const bool same = std::find(wanted.begin(), wanted.end(), gpu.capability) != wanted.end();
    std::pair<int, int> oldest{INT_MAX, INT_MAX};
    std::string names;
    for (const std::string& capability : wanted) {
        oldest = std::min(oldest, number(capability));
        names += (names.empty() ? "" : ", ") + architecture(capability);
    }
    if (!same && !(built.hardware_compatible && number(gpu.capability) >= oldest)) {
        throw bad_bundle(where + ": built for " + names + ", this GPU is " + gpu.name + ", " + architecture(gpu.capability) + again);
    }
    if (built.flavour == "tensorrt" && !built.hardware_compatible && built.gpu != gpu.name) {
        throw bad_bundle(where + ": built on " + built.gpu.value_or("no GPU") + ", this GPU is " + gpu.name + again);
    }
}

// Throws Error BAD_BUNDLE unless the engines were built from the bundle with this manifest.
void check_source(const fs::path& folder, const EngineRecord& record, const Manifest& manifest) {
    const auto hash = [&](const std::string& file) {
        const auto found = manifest.files.find(file);
        return found == manifest.files.end() ? "no such file" : found->second.sha256;
    };
    bool same = record.weights_sha256 == hash(WEIGHTS);
    for (const auto& [name, engine] : record.engines) {
        const auto graph = manifest.graphs.find(name);
        same = same && graph != manifest.graphs.end() && engine.source_sha256 == hash(graph->second.file);
    }
    if (!same) throw bad_bundle(folder.string() + ": built from another bundle than the one it lies in; run make engine again");
}

struct Found {
    fs::path folder;
    Manifest manifest;
    EngineRecord record;
};

// The directory of engines to use: `bundle` itself, or one in it that is of this bundle and runs on this machine. Throws
// Error; with several directories that do not fit, saying why for each.
Found find_engines(const fs::path& bundle, const Manifest& manifest, const Gpu& gpu, bool verify) {
    if (is_file(bundle / ENGINE_RECORD)) {
        EngineRecord record = EngineRecord::load(bundle);
        check_machine(bundle, record, gpu);
        return {bundle, manifest, std::move(record)};
    }
    const std::vector<fs::path> folders = engine_folders(bundle);
    if (folders.empty()) throw bad_bundle(bundle.string() + ": no engines in " + ENGINES + "/; make engine builds them");
    std::string reasons;
    var_edge_status status = VAR_EDGE_UNSUPPORTED;  // if it is so of all of them
    for (const fs::path& folder : folders) {
        try {
            EngineRecord record = EngineRecord::load(folder);
            check_machine(folder, record, gpu);
            check_source(folder, record, manifest);
            return {folder, Manifest::load(folder, verify), std::move(record)};
        } catch (const Error& error) {
            if (error.status == VAR_EDGE_OUT_OF_MEMORY) throw;
            reasons += (reasons.empty() ? "" : "; ") + std::string(error.what());
            if (error.status != VAR_EDGE_UNSUPPORTED) status = VAR_EDGE_BAD_BUNDLE;
        }
    }
    throw Error(status, reasons);
}

class TensorRTBackend final : public Backend {
  public:
    TensorRTBackend(const fs::path& bundle, const Manifest& manifest, const BackendOptions& options)
        : cuda_(options.stream),
          found_(find_engines(bundle, manifest, cuda_.gpu(), options.verify)),
          log_(options.log),
          runtime_(nvinfer1::createInferRuntime(*log_)),
          arrays_(cuda_) {
        const Built& built = found_.record.built;
        if (!runtime_) throw failed("TensorRT " + tensorrt_version() + " does not start: " + (*log_).reason());
        if (built.version_compatible) runtime_->setEngineHostCodeAllowed(true);
        std::size_t scratch = 0;
        for (const char* name : REQUIRED_GRAPHS) {
            const LoadedEngine& engine = engines_.emplace(name, load(name)).first->second;
            scratch = std::max(scratch, engine.scratch_bytes());
        }
        // All stages run one after the other on one stream, so they share scratch memory.
        const Array shared = arrays_.zeros({std::int64_t(scratch)}, Dtype::uint8);
        for (auto& [_, engine] : engines_) engine.use(shared);
        constants_ = scale_constants(found_.folder, found_.manifest, arrays_);
        name_ = built.flavour + " " + built.version + " on " + cuda_.gpu().name;
    }

    // What TensorRT holds goes while its device is the current one and nothing runs.
    ~TensorRTBackend() override {
        const CurrentDevice device;
        cudaStreamSynchronize(cuda_.stream());
        batch_.reset();
        encoder_.reset();
        engines_.clear();
        runtime_.reset();
    }

    const Manifest& manifest() const { return found_.manifest; }
    std::string name() const override { return name_; }
    bool on_device() const override { return true; }
    const std::vector<std::int64_t>& batches() const override { return found_.record.batches; }

    void begin(const std::vector<std::int64_t>& labels, bool smooth) override {
        const CurrentDevice device;
        const std::int64_t size = std::int64_t(labels.size());
        if (!batch_ || batch_->wiring.size != size || batch_->wiring.smooth != smooth) {
            batch_.reset();  // the arrays of the other kind first
            if (smooth) load_smooth_bridge();
            batch_ = prepare(size, smooth);
        }
        cuda_.synchronize();  // a run that was stopped may still read what is written now
        batch_->latest = -1;
        batch_->wiring.set_labels(labels.data());
        launch(batch_->condition, "condition");
    }

    void step(std::size_t k, const Draw& draw, const Sampling& sampling) override {
        const CurrentDevice device;
        batch_->wiring.set_scale(k, draw, sampling);
        launch(batch_->steps[k], "step", std::int64_t(k));
        batch_->latest = std::int64_t(k);
    }

    void tokens(std::size_t k, std::int32_t* out) override {
        const CurrentDevice device;
        batch_->arrays.download(out, batch_->wiring.tokens[k]);
    }

    void drawn(std::size_t k, std::int32_t* out) override {
        const CurrentDevice device;
        batch_->arrays.download(out, batch_->wiring.drawn[k]);
    }

    void logits(std::size_t k, float* out) override {
        const CurrentDevice device;
        batch_->arrays.download(out, batch_->wiring.logits.rows(0, found_.manifest.scales[k].tokens));
    }

    std::vector<std::uint8_t> finite() override {
        const CurrentDevice device;
        return batch_->wiring.finite();
    }

    void decode(std::uint8_t* images, bool to_device) override {
        const CurrentDevice device;
        const Array& drawn = batch_->wiring.images;
        launch(batch_->decoders[std::size_t(batch_->latest) % 2], "decoder");
        if (to_device) cuda_.copy(images, drawn.data, drawn.bytes());
        else cuda_.download(batch_->images, drawn.data, drawn.bytes());
        cuda_.synchronize();
        if (!to_device) std::memcpy(images, batch_->images, drawn.bytes());
    }

    void encode(const std::uint8_t* image, std::int32_t* tokens) override {
        const CurrentDevice device;
        if (!encoder_) encoder_ = prepare_encoder();  // only editing pays for it
        encoder_->arrays.upload(encoder_->image.data, image, encoder_->image.bytes());
        encoder_->engine.enqueue(0, {"encoder", {{"image", encoder_->image}}, {{"tokens", encoder_->tokens}}});
        encoder_->arrays.download(tokens, encoder_->tokens);
    }

  private:
    // The arrays of one batch size, and the recorded graph of every stage on them.
    //
    // A graph holds the upload of the stage's settings and its engines' kernels: condition; transformer and bridge of each
    // scale; decoder, once for either f_hat.
    struct Batch {
        Batch(std::int64_t size, bool smooth, const Manifest& manifest, const std::vector<ScaleConstants>& constants,
              const Cuda& on)
            : cuda(on), arrays(on), wiring(size, smooth, manifest, constants, arrays),
              images(arrays.pinned(wiring.images.bytes())) {}
        ~Batch() { cudaStreamSynchronize(cuda.stream()); }  // of a run that was stopped

        const Cuda& cuda;
        DeviceArrays arrays;
        Wiring wiring;
        std::uint8_t* images;  // of the host
        Graph condition, decoders[2];
        std::vector<Graph> steps;
        std::int64_t latest = -1;  // the scale stepped last
    };

    struct Encoder {
        Encoder(LoadedEngine&& loaded, const Cuda& cuda) : engine(std::move(loaded)), arrays(cuda) {}

        LoadedEngine engine;
        DeviceArrays arrays;
        Array image, tokens;
    };

    using Runs = std::vector<std::pair<Stage, std::size_t>>;  // stages with their profiles

    void launch(const Graph& graph, const char* stage, std::int64_t scale = -1) {
        if (on_stage) cuda_.synchronize();
        const auto start = std::chrono::steady_clock::now();
        cuda_.launch(graph);
        if (!on_stage) return;
        cuda_.synchronize();
        on_stage(stage, scale, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }

    std::unique_ptr<Batch> prepare(std::int64_t size, bool smooth) {
        const std::vector<std::int64_t>& sizes = found_.record.batches;
        const auto place = std::find(sizes.begin(), sizes.end(), size);
        if (place == sizes.end()) {
            std::string known;
            for (std::int64_t one : sizes) known += (known.empty() ? "" : ", ") + std::to_string(one);
            throw bad_argument("batch: these engines draw " + known + " pictures at once, not " + std::to_string(size));
        }
        auto batch = std::make_unique<Batch>(size, smooth, found_.manifest, constants_, cuda_);
        const Wiring& wiring = batch->wiring;
        batch->condition = recorded({{wiring.condition, std::size_t(place - sizes.begin())}}, [&] { wiring.start(); });
        const std::size_t scales = wiring.steps.size();
        for (std::size_t k = 0; k < scales; ++k) {
            const std::size_t profile = found_.record.profile(size, k, scales);
            const auto& [transformer, bridge] = wiring.steps[k];
            batch->steps.push_back(recorded({{transformer, profile}, {bridge, profile}}, [&] { wiring.settings[k].upload(); }));
        }
        for (std::size_t k : {0, 1}) {  // by f_hat's turn
            Runs runs;
            for (const Stage& stage : wiring.decoders(k)) runs.emplace_back(stage, 0);
            batch->decoders[k] = recorded(runs, [] {});
        }
        return batch;
    }

    // A graph that prepares, then runs stages with their profiles.
    Graph recorded(const Runs& runs, const std::function<void()>& prepare) {
        const auto queue = [&] {
            prepare();
            for (const auto& [stage, profile] : runs) engines_.at(stage.graph).enqueue(profile, stage);
        };
        queue();  // the first run allocates and chooses kernels, which a recording must not
        cuda_.synchronize();
        return cuda_.captured(queue);
    }

    // Only smooth sampling pays for it; so its scratch memory is its own.
    void load_smooth_bridge() {
        if (engines_.count(SMOOTH_BRIDGE)) return;
        check_smooth(found_.manifest);
        LoadedEngine& engine = engines_.emplace(SMOOTH_BRIDGE, load(SMOOTH_BRIDGE)).first->second;
        engine.use(arrays_.zeros({std::int64_t(engine.scratch_bytes())}, Dtype::uint8));
    }

    std::unique_ptr<Encoder> prepare_encoder() {
        if (!found_.record.engines.count("encoder") || !found_.manifest.graphs.count("encoder")) {
            throw bad_bundle(found_.folder.string() + ": no encoder engine, which editing needs; make onnx exports the bundle with"
                             " one, then run make engine");
        }
        auto encoder = std::make_unique<Encoder>(load("encoder"), cuda_);
        const Model& model = found_.manifest.model;
        encoder->image = encoder->arrays.zeros({1, model.image_size, model.image_size, 3}, Dtype::uint8);
        encoder->tokens = encoder->arrays.zeros({1, model.tokens()}, Dtype::int32);
        encoder->engine.use(encoder->arrays.zeros({std::int64_t(encoder->engine.scratch_bytes())}, Dtype::uint8));
        return encoder;
    }

    LoadedEngine load(const std::string& name) {
        const auto record = found_.record.engines.find(name);
        if (record == found_.record.engines.end()) {
            throw bad_bundle((found_.folder / ENGINE_RECORD).string() + ": no engine " + name + "; run make engine again");
        }
        const GraphSpec& graph = found_.manifest.graphs.at(name);
        return {*runtime_, *log_, cuda_, found_.folder / graph.file, graph, record->second};
    }

    Cuda cuda_;
    Found found_;
    OpenLog log_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    DeviceArrays arrays_;  // of all batch sizes: constants, scratch
    std::map<std::string, LoadedEngine> engines_;
    std::vector<ScaleConstants> constants_;
    std::string name_;
    std::unique_ptr<Encoder> encoder_;
    std::unique_ptr<Batch> batch_;
};

}  // namespace

std::unique_ptr<Backend> create_tensorrt(const fs::path& bundle, Manifest& manifest, const BackendOptions& options) {
    const CurrentDevice device;
    auto backend = std::make_unique<TensorRTBackend>(bundle, manifest, options);
    manifest = backend->manifest();
    return backend;
}

}  // namespace var_edge_impl
