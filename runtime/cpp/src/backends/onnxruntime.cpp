// ONNX Runtime: graphs work in place on arrays that are allocated once for a batch size. Twin of
// runtime/backends/onnxruntime.py.
#include <array>
#include <cstring>
#include <mutex>
#include <optional>

#include "backends/create.hpp"
#include "backends/ort_session.hpp"
#include "backends/wired.hpp"
#include "errors.hpp"
#include "files/bounded.hpp"

namespace var_edge_impl {

namespace {

// What handles share: constants, and the graphs with their weights. A graph is opened at its first use.
class Loaded {
  public:
    Loaded(var_edge_backend wanted, const std::filesystem::path& folder, std::shared_ptr<const Manifest> its,
           const BackendOptions& options)
        : bundle(folder),
          manifest(std::move(its)),
          weights(folder / WEIGHTS),
          verify_(options.verify),
          log_(options.log),
          options_(session_options(options, manifest->precision.find("int8 for trt") == 0, log_)) {
        name = "ONNX Runtime " + Ort::GetVersionString();
        if (wanted == VAR_EDGE_ONNXRUNTIME_CUDA) {
            provider_.emplace(options_, options);
            copier_.emplace(options_, *provider_);
            name += ", CUDA execution provider";
        } else if (!options.provider.empty()) {
            throw bad_argument("provider_options: expected NULL, as the CPU has none");
        }
        for (const auto& [_, graph] : manifest->graphs) {
            const std::string suffix = ".onnx";
            if (graph.file.size() < suffix.size() || graph.file.substr(graph.file.size() - suffix.size()) != suffix) {
                throw bad_bundle(bundle.string() + ": holds engines (" + graph.file +
                                 "), which only the TensorRT backend runs");
            }
        }
        std::uint64_t done = 0;
        const std::vector<std::string> graphs = drawing_graphs(*manifest);
        for (const std::string& graph : graphs) {
            sessions_.emplace(graph, open(graph));
            if (options.progress) options.progress(VAR_EDGE_LOADING, graph.c_str(), ++done, graphs.size());
        }
        constants = scale_constants(bundle, *manifest, arrays_);
        check_shapes(false);
    }

    // Returns a graph, which it opens if necessary: only callers that encode or draw smoothly need those graphs.
    Session& session(const std::string& graph) {
        const std::lock_guard<std::mutex> lock(mutex_);
        auto found = sessions_.find(graph);
        if (found == sessions_.end()) found = sessions_.emplace(graph, open_later(graph)).first;
        return found->second;
    }

    // Opens the graph of smooth sampling. Throws Error BAD_BUNDLE unless it fits.
    void open_smooth() {
        session(SMOOTH_BRIDGE);
        check_shapes(true);
    }

    // Returns arrays for a batch.
    std::unique_ptr<Arrays> new_arrays() {
        if (!provider_) return std::make_unique<HostArrays>();
        return std::make_unique<CudaArrays>(session("transformer").get(), *provider_, *copier_);
    }

    const CudaProvider* provider() const { return provider_ ? &*provider_ : nullptr; }  // null: on the CPU

    const std::filesystem::path bundle;
    const std::shared_ptr<const Manifest> manifest;
    const InputFile weights;  // ONNX Runtime maps the file: a change to it changes what is drawn
    std::string name;
    std::vector<ScaleConstants> constants;

  private:
    Session open(const std::string& graph) const { return {bundle, manifest->graphs.at(graph), options_, provider()}; }

    // Opens a graph long after the bundle was checked, so it checks again.
    Session open_later(const std::string& graph) const {
        manifest->check_still(bundle, manifest->graphs.at(graph).file, verify_);
        manifest->check_still(bundle, WEIGHTS, verify_);
        return open(graph);
    }

    // Throws Error BAD_BUNDLE unless the graphs take the arrays that the manifest's sizes call for, before they are
    // allocated.
    void check_shapes(bool smooth) {
        NoArrays none;
        const Wanted one = {1, smooth, manifest->scales.size()};
        for (const Stage& stage : Wiring(one, *manifest, constants, none).stages(decoder_graphs(*manifest))) {
            session(stage.graph).check(stage);
        }
    }

    const bool verify_;
    Log log_;
    Ort::SessionOptions options_;
    std::optional<CudaProvider> provider_;
    std::optional<ColumnCopier> copier_;  // with the provider
    HostArrays arrays_;
    std::mutex mutex_;
    std::map<std::string, Session> sessions_;
};

class OnnxRuntimeBackend final : public WiredBackend {
  public:
    explicit OnnxRuntimeBackend(std::shared_ptr<Loaded> loaded)
        : WiredBackend(loaded->manifest, false), loaded_(std::move(loaded)) {}
    ~OnnxRuntimeBackend() override { free_batches(); }  // their bindings, before the sessions they are of

    std::string name() const override { return loaded_->name; }
    std::unique_ptr<Backend> share() const override { return std::make_unique<OnnxRuntimeBackend>(loaded_); }
    void stop(bool wanted) override { wanted ? run_options_.SetTerminate() : run_options_.UnsetTerminate(); }
    bool on_device() const override { return false; }
    const std::vector<std::int64_t>& batches() const override { return any_; }

    void encode(const std::uint8_t* image, std::int32_t* tokens) override {
        if (!manifest().graphs.count("encoder")) {
            throw bad_bundle(loaded_->bundle.string() +
                             ": no encoder, which editing needs; make onnx exports the bundle with one");
        }
        loaded_->weights.check_unchanged();
        HostArrays arrays;
        const std::int64_t side = manifest().model.image_size;
        const Array in = arrays.empty({1, side, side, 3}, Dtype::uint8),
                    out = arrays.empty({1, manifest().model.tokens()}, Dtype::int32);
        std::memcpy(in.data, image, in.bytes());
        Bound encoder = loaded_->session("encoder").bind({"encoder", {{"image", in}}, {{"tokens", out}}});
        timed("encoder", -1, [&] { encoder.run(run_options_); });
        arrays.download(tokens, out);
    }

  private:
    // The stages of one batch size, bound to their arrays.
    class BoundBatch final : public Batch {
      public:
        BoundBatch(const Wanted& wanted, OnnxRuntimeBackend& backend)
            : Batch(backend.loaded_->new_arrays(), wanted, backend.manifest(), backend.loaded_->constants),
              backend_(backend),
              condition_(bound(wiring.condition)) {
            for (const std::string& graph : decoder_graphs(backend.manifest())) {
                for (std::size_t k : {0, 1}) {  // for either f_hat
                    for (const Stage& stage : wiring.decoders(graph, k)) decoders_[graph][k].push_back(bound(stage));
                }
            }
        }

        void prepare(const Plan& plan, const std::string&) override {
            const bool through_host = plan.asked && backend_.loaded_->provider();
            if (!steps_.empty() && through_host == bool(host_logits_)) return;
            steps_.clear();
            host_logits_.reset();
            if (through_host) host_logits_.emplace(wiring);
            for (const auto& [transformer, bridge] : host_logits_ ? host_logits_->steps : wiring.steps) {
                steps_.emplace_back(Run{bound(transformer), transformer.copies}, Run{bound(bridge), bridge.copies});
            }
        }

        void begin() override {
            backend_.loaded_->weights.check_unchanged();
            wiring.upload_labels();
            run(condition_, "condition", -1);
        }

        void step(std::size_t k) override {
            wiring.upload_scale(k);
            for (const auto& [target, source] : steps_[k].first.copies) arrays->copy_columns(target, source);
            run(steps_[k].first.graph, "transformer", std::int64_t(k));
            Arrays& of_logits = host_logits_ ? host_logits_->arrays : *arrays;
            for (const auto& [target, source] : steps_[k].second.copies) of_logits.copy_columns(target, source);
            run(steps_[k].second.graph, wiring.smooth ? SMOOTH_BRIDGE : "bridge", std::int64_t(k));
        }

        void decode(const std::string& graph) override {
            for (Bound& decoder : decoders_.at(graph)[std::size_t(latest) % 2]) run(decoder, graph.c_str(), -1);
            wiring.results.fetch();
            arrays->wait();
        }

        Array logits() const override { return host_logits_ ? host_logits_->both : wiring.logits; }

      private:
        // With a GPU, the logits pass through the host's memory if somebody may ask for them: ONNX Runtime copies what
        // a graph reads or writes, and nothing else.
        struct HostLogits {
            explicit HostLogits(const Wiring& wiring) : steps(wiring.steps) {
                const Array& device = wiring.logits;
                both = arrays.empty(device.shape, device.dtype);
                Shape half = device.shape;
                half[1] = wiring.size;
                const bool all_guided = wiring.guided == steps.size();
                const Array labelled = all_guided ? both : arrays.empty(half, device.dtype);
                for (std::size_t k = 0; k < steps.size(); ++k) {
                    auto& [transformer, bridge] = steps[k];
                    const std::int64_t rows = bridge.inputs.at("logits").shape[0];
                    bridge.inputs["logits"] = both.rows(0, rows);
                    transformer.outputs["logits"] = (k < wiring.guided ? both : labelled).rows(0, rows);
                    if (k >= wiring.guided) bridge.copies = {{both.rows(0, rows), labelled.rows(0, rows)}};
                }
            }

            HostArrays arrays;
            std::vector<std::pair<Stage, Stage>> steps;  // those of the wiring, but for the logits
            Array both;                                  // (L, 2B, V)
        };

        struct Run {
            Bound graph;
            std::vector<ColumnCopy> copies;  // made before
        };

        Bound bound(const Stage& stage) { return backend_.loaded_->session(stage.graph).bind(stage); }

        void run(Bound& graph, const char* stage, std::int64_t scale) {
            backend_.timed(stage, scale, [&] { graph.run(backend_.run_options_); });
        }

        OnnxRuntimeBackend& backend_;
        Bound condition_;
        std::optional<HostLogits> host_logits_;
        std::vector<std::pair<Run, Run>> steps_;
        std::map<std::string, std::array<std::vector<Bound>, 2>> decoders_;  // by graph, for either f_hat
    };

    std::unique_ptr<Batch> new_batch(const Wanted& wanted) override {
        if (wanted.smooth) loaded_->open_smooth();
        return std::make_unique<BoundBatch>(wanted, *this);
    }

    std::shared_ptr<Loaded> loaded_;
    Ort::RunOptions run_options_;
    std::vector<std::int64_t> any_;
};

}  // namespace

std::unique_ptr<Backend> create_onnxruntime(var_edge_backend wanted, const std::filesystem::path& bundle,
                                            std::shared_ptr<const Manifest> manifest, const BackendOptions& options) {
    return std::make_unique<OnnxRuntimeBackend>(std::make_shared<Loaded>(wanted, bundle, std::move(manifest), options));
}

}  // namespace var_edge_impl
