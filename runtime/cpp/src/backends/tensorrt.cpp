// TensorRT: all data stays on the GPU, and a whole image is one CUDA graph, recorded once and launched from then on.
// Twin of runtime/backends/tensorrt.py.
#include <algorithm>
#include <array>
#include <climits>
#include <cstdio>
#include <functional>
#include <optional>
#include <utility>

#include "backends/create.hpp"
#include "backends/cuda.hpp"
#include "backends/kernel_cache.hpp"
#include "backends/trt_engine.hpp"
#include "backends/wired.hpp"
#include "bundle/engine_record.hpp"
#include "errors.hpp"
#include "files/fingerprint.hpp"

namespace var_edge_impl {

namespace fs = std::filesystem;

namespace {

// Returns "8.7" as numbers. A text that is no capability compares as larger than any.
std::pair<int, int> number(const std::string& capability) {
    int major = INT_MAX, minor = INT_MAX;
    return std::sscanf(capability.c_str(), "%d.%d", &major, &minor) == 2 ? std::pair(major, minor)
                                                                         : std::pair(INT_MAX, INT_MAX);
}

std::string architecture(std::string capability) {
    capability.erase(std::remove(capability.begin(), capability.end(), '.'), capability.end());
    return "sm_" + capability;
}

// A record's version may leave out the build number.
bool same_version(const std::string& built, const std::string& here) {
    return (here + ".").compare(0, built.size() + 1, built + ".") == 0;
}

// Throws Error BAD_BUNDLE unless these engines were built for this GPU and this TensorRT, UNSUPPORTED if this library
// has the other TensorRT.
void check_machine(const fs::path& folder, const EngineRecord& record, const Gpu& gpu) {
    const Built& built = record.built;
    const std::string where = folder.string(), again = "; run make engine on this machine", here = tensorrt_version();
    if (built.flavour != FLAVOUR) {
        throw unsupported(where + ": built with " + built.flavour + ", this library with " + FLAVOUR +
                          "; build the library with -DTensorRT_ROOT= of " + built.flavour + ", or engines with --trt " +
                          FLAVOUR_OPTION);
    }
    const bool same_line =
        built.version_compatible && here.substr(0, here.find('.')) == built.version.substr(0, built.version.find('.'));
    if (!same_version(built.version, here) && !same_line) {
        throw bad_bundle(where + ": built with " + built.flavour + " " + built.version + ", this machine has " + here +
                         again);
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
        throw bad_bundle(where + ": built for " + names + ", this GPU is " + gpu.name + ", " +
                         architecture(gpu.capability) + again);
    }
    if (built.flavour == "tensorrt" && !built.hardware_compatible && built.gpu != gpu.name) {
        throw bad_bundle(where + ": built on " + built.gpu.value_or("no GPU") + ", this GPU is " + gpu.name + again);
    }
}

// Throws Error BAD_BUNDLE unless the engines were built from the bundle with this manifest.
void check_source(const fs::path& folder, const EngineRecord& record, const Manifest& manifest) {
    if (record.fits(manifest)) return;
    throw bad_bundle(folder.string() + ": built from another bundle than the one it lies in; run make engine again");
}

struct Found {
    fs::path folder;
    std::shared_ptr<const Manifest> manifest;
    EngineRecord record;
};

// The directory of engines to use: `bundle` itself, or one in it that is of this bundle and runs on this machine.
// Throws Error; with several directories that do not fit, saying why for each.
Found find_engines(const fs::path& bundle, std::shared_ptr<const Manifest> manifest, const Gpu& gpu, bool verify) {
    if (is_file(bundle / ENGINE_RECORD)) {
        EngineRecord record = EngineRecord::load(bundle);
        check_machine(bundle, record, gpu);
        return {bundle, std::move(manifest), std::move(record)};
    }
    const std::vector<fs::path> folders = engine_folders(bundle);
    if (folders.empty()) {
        throw bad_bundle(bundle.string() + ": no engines in " + ENGINES + "/; make engine builds them");
    }
    std::string reasons;
    var_edge_status status = VAR_EDGE_UNSUPPORTED;  // if it is so of all of them
    for (const fs::path& folder : folders) {
        try {
            EngineRecord record = EngineRecord::load(folder);
            check_machine(folder, record, gpu);
            check_source(folder, record, *manifest);
            return {folder, std::make_shared<const Manifest>(Manifest::load(folder, verify)), std::move(record)};
        } catch (const Error& error) {
            if (error.status == VAR_EDGE_OUT_OF_MEMORY) throw;
            reasons += (reasons.empty() ? "" : "; ") + std::string(error.what());
            if (error.status != VAR_EDGE_UNSUPPORTED) status = VAR_EDGE_BAD_BUNDLE;
        }
    }
    throw Error(status, reasons);
}

class TensorRTBackend final : public WiredBackend {
  public:
    TensorRTBackend(std::unique_ptr<Cuda> cuda, Found found, const BackendOptions& options)
        : WiredBackend(std::move(found.manifest), true),  // recording takes longer than drawing
          cuda_(std::move(cuda)),
          folder_(std::move(found.folder)),
          record_(std::move(found.record)),
          log_(options.log),
          runtime_(nvinfer1::createInferRuntime(*log_)),
          kernels_(record_.built.tag()),
          arrays_(*cuda_) {
        const Built& built = record_.built;
        if (!runtime_) throw failed("TensorRT " + tensorrt_version() + " does not start: " + (*log_).reason());
        if (built.version_compatible) runtime_->setEngineHostCodeAllowed(true);
        std::size_t scratch = 0;
        for (const std::string& name : drawing_graphs(manifest())) {
            const LoadedEngine& engine = engines_.emplace(name, load(name)).first->second;
            scratch = std::max(scratch, engine.scratch_bytes());
        }
        // All stages run one after the other on one stream, so they share scratch memory.
        const Array shared = arrays_.empty({std::int64_t(scratch)}, Dtype::uint8);
        for (auto& [_, engine] : engines_) engine.use(shared);
        constants_ = scale_constants(folder_, manifest(), arrays_);
        name_ = built.flavour + " " + built.version + " on " + cuda_->gpu().name;
    }

    // TensorRT's objects must be destroyed while their device is the current one and nothing runs.
    ~TensorRTBackend() override {
        const CurrentDevice device;
        cudaStreamSynchronize(cuda_->stream());
        free_batches();
        encoder_.reset();
        engines_.clear();
        kernels_.reset();
        runtime_.reset();
    }

    std::string name() const override { return name_; }
    bool on_device() const override { return true; }
    const std::vector<std::int64_t>& batches() const override { return record_.batches; }

    void check(const Sampling& sampling) const override {
        WiredBackend::check(sampling);
        const auto scales = std::int64_t(manifest().scales.size());
        const std::int64_t least = std::min(std::int64_t(record_.guidance_scales), scales);
        if (sampling.guided(scales) >= least) return;
        const std::string asked = std::to_string(sampling.guided(scales));
        throw bad_argument("guidance_scales: the engines in " + folder_.string() + " have guidance at " +
                           std::to_string(least) + " scales or more, not at " + asked +
                           "; build them with python -m export.engine … --guidance-scales " + asked);
    }

    void encode(const std::uint8_t* image, std::int32_t* tokens) override {
        const CurrentDevice device;
        const bool first = !encoder_;
        with_room(room_of_batches(), [&] {
            if (!encoder_) encoder_ = prepare_encoder();  // only editing pays for it
            timed("encoder", -1, [&] {
                encoder_->arrays.upload(encoder_->image.data, image, encoder_->image.bytes());
                encoder_->engine.enqueue(0, {"encoder", {{"image", encoder_->image}}, {{"tokens", encoder_->tokens}}});
            });
        });
        encoder_->arrays.download(tokens, encoder_->tokens);
        if (first) kernels_->save();
    }

    void free_batches() override {
        const CurrentDevice device;
        WiredBackend::free_batches();
        for (auto& [_, engine] : engines_) engine.free_contexts();
    }

  private:
    // The arrays of one batch size, and the CUDA graphs recorded on them.
    //
    // If nobody listens, a whole image is one graph, one for each decoder: the upload of all settings, the kernels of
    // all engines, the download of the results. Otherwise, and with the large noise of smooth sampling, there is one
    // for condition, one for transformer and bridge of each scale, and one for each decoder and f_hat. Graphs are
    // recorded when they are first needed: a draft needs those of its scales only.
    class RecordedBatch final : public Batch {
      public:
        RecordedBatch(const Wanted& wanted, TensorRTBackend& backend)
            : Batch(std::make_unique<DeviceArrays>(*backend.cuda_), wanted, backend.manifest(), backend.constants_),
              backend_(backend),
              steps_(wiring.steps.size()) {}

        ~RecordedBatch() override { cudaStreamSynchronize(backend_.cuda_->stream()); }  // of a run that was stopped

        void prepare(const Plan& plan, const std::string& decoder) override {
            // A stage of a whole image has no time of its own.
            whole_ = plan.whole() && !wiring.smooth && !backend_.on_stage;
            bool compiled = false;
            const auto record = [&](Graph& graph, const std::function<void()>& queue) {
                if (graph) return;
                graph = recorded(queue);
                compiled = true;
            };
            if (whole_) {
                record(images_[decoder], [&] {
                    const std::size_t scales = wiring.steps.size();
                    wiring.settings.upload();
                    run_condition();
                    for (std::size_t k = 0; k < scales; ++k) run_step(k);
                    run_decoders(decoder, scales - 1);
                });
            } else {
                for (std::size_t k = 0; k < plan.scales; ++k) {
                    record(steps_[k], [&] {
                        wiring.upload_scale(k);
                        run_step(k);
                    });
                }
                const auto record_decoder = [&](const std::string& graph) {
                    for (std::size_t k : {0, 1}) record(decoders_[graph][k], [&] { run_decoders(graph, k); });
                };
                const bool last = plan.scales == wiring.steps.size();  // whose preview is the picture itself
                if (plan.asked) record_decoder(backend_.engines_.count(TINY_DECODER) ? TINY_DECODER : decoder);
                if (plan.image || (plan.asked && last)) record_decoder(decoder);
                record(condition_, [&] {
                    wiring.upload_labels();
                    run_condition();
                });
            }
            if (compiled) backend_.kernels_->save();  // kernels of these recordings
        }

        void begin() override {
            if (!whole_) launch(condition_, "condition", -1);
        }

        void step(std::size_t k) override {
            if (!whole_) launch(steps_[k], "step", std::int64_t(k));
        }

        void decode(const std::string& decoder) override {
            const Graph& graph = whole_ ? images_.at(decoder) : decoders_.at(decoder)[std::size_t(latest) % 2];
            launch(graph, decoder.c_str(), -1);
            backend_.cuda_->synchronize();
        }

      private:
        void run(const Stage& stage, std::size_t profile) {
            for (const auto& [target, source] : stage.copies) arrays->copy_columns(target, source);
            backend_.engines_.at(stage.graph).enqueue(profile, stage);
        }

        void run_condition() { run(wiring.condition, backend_.record_.profile(wiring.size, 0, 1)); }

        void run_step(std::size_t k) {
            const EngineRecord& record = backend_.record_;
            const std::size_t scales = wiring.steps.size(), profile = record.profile(wiring.size, k, scales);
            const bool guided = k < wiring.guided;
            run(wiring.steps[k].first, guided ? profile : record.unguided_profile(wiring.size, k, scales));
            run(wiring.steps[k].second, profile);
        }

        void run_decoders(const std::string& graph, std::size_t k) {
            for (const Stage& stage : wiring.decoders(graph, k)) run(stage, 0);
            wiring.results.fetch();
        }

        Graph recorded(const std::function<void()>& queue) const {
            queue();  // the first run allocates and chooses kernels, which a recording must not
            backend_.cuda_->synchronize();
            return backend_.cuda_->captured(queue);
        }

        void launch(const Graph& graph, const char* stage, std::int64_t scale) {
            backend_.timed(stage, scale, [&] { backend_.cuda_->launch(graph); });
        }

        TensorRTBackend& backend_;
        bool whole_ = false;  // whether the batch that is drawn is one graph
        Graph condition_;
        std::vector<Graph> steps_;
        std::map<std::string, std::array<Graph, 2>> decoders_;  // by graph, for either f_hat
        std::map<std::string, Graph> images_;                   // by graph of the decoder
    };

    struct Encoder {
        Encoder(LoadedEngine&& loaded, const Cuda& cuda) : engine(std::move(loaded)), arrays(cuda) {}

        LoadedEngine engine;
        DeviceArrays arrays;
        Array image, tokens;
    };

    std::shared_ptr<void> current_device() const override { return std::make_shared<CurrentDevice>(); }

    void synchronize() const override { cuda_->synchronize(); }

    std::unique_ptr<Batch> new_batch(const Wanted& wanted) override {
        const std::vector<std::int64_t>& sizes = record_.batches;
        if (std::find(sizes.begin(), sizes.end(), wanted.size) == sizes.end()) {
            std::string known;
            for (std::int64_t one : sizes) known += (known.empty() ? "" : ", ") + std::to_string(one);
            throw bad_argument("batch: the engines in " + folder_.string() + " draw " + known +
                               " pictures at once, not " + std::to_string(wanted.size));
        }
        if (wanted.smooth) load_smooth_bridge();
        return std::make_unique<RecordedBatch>(wanted, *this);
    }

    // Only smooth sampling needs it, so it is loaded late and has scratch memory of its own.
    void load_smooth_bridge() {
        if (engines_.count(SMOOTH_BRIDGE)) return;
        LoadedEngine engine = load(SMOOTH_BRIDGE);
        engine.use(arrays_.empty({std::int64_t(engine.scratch_bytes())}, Dtype::uint8));
        engines_.emplace(SMOOTH_BRIDGE, std::move(engine));
    }

    std::unique_ptr<Encoder> prepare_encoder() {
        if (!record_.engines.count("encoder") || !manifest().graphs.count("encoder")) {
            throw bad_bundle(folder_.string() +
                             ": no encoder engine, which editing needs; make onnx exports the bundle with"
                             " one, then run make engine");
        }
        auto encoder = std::make_unique<Encoder>(load("encoder"), *cuda_);
        const Model& model = manifest().model;
        encoder->image = encoder->arrays.empty({1, model.image_size, model.image_size, 3}, Dtype::uint8);
        encoder->tokens = encoder->arrays.empty({1, model.tokens()}, Dtype::int32);
        encoder->engine.use(encoder->arrays.empty({std::int64_t(encoder->engine.scratch_bytes())}, Dtype::uint8));
        return encoder;
    }

    LoadedEngine load(const std::string& name) {
        const auto record = record_.engines.find(name);
        if (record == record_.engines.end()) {
            throw bad_bundle((folder_ / ENGINE_RECORD).string() + ": no engine " + name + "; run make engine again");
        }
        const GraphSpec& graph = manifest().graphs.at(name);
        return {*runtime_, *log_, *cuda_, *kernels_, folder_ / graph.file, graph, record->second};
    }

    std::unique_ptr<Cuda> cuda_;
    fs::path folder_;
    EngineRecord record_;
    OpenLog log_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::optional<KernelCache> kernels_;  // always there until the destructor
    DeviceArrays arrays_;                 // of all batch sizes: constants, scratch
    std::map<std::string, LoadedEngine> engines_;
    std::vector<ScaleConstants> constants_;
    std::string name_;
    std::unique_ptr<Encoder> encoder_;
};

}  // namespace

std::unique_ptr<Backend> create_tensorrt(const fs::path& bundle, std::shared_ptr<const Manifest> manifest,
                                         const BackendOptions& options) {
    const CurrentDevice device;
    auto cuda = std::make_unique<Cuda>(options.stream);
    Found found = find_engines(bundle, std::move(manifest), cuda->gpu(), options.verify);
    return std::make_unique<TensorRTBackend>(std::move(cuda), std::move(found), options);
}

}  // namespace var_edge_impl
