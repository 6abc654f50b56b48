// What the scale loop asks of an inference engine. Twin of runtime/backends/base.py.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/wiring.hpp"
#include "bundle/manifest.hpp"
#include "errors.hpp"
#include "progress.hpp"
#include "runtime/sampling.hpp"
#include "var_edge.h"

namespace var_edge_impl {

using Log = std::function<void(int level, const std::string& message)>;
using OnStage = std::function<void(const char* stage, std::int64_t scale, double seconds)>;  // scale -1: of none

struct BackendOptions {
    int threads = 0;  // of the CPU; 0: as many processors as this process may use
    bool verify = true;
    void* stream = nullptr;                                     // cudaStream_t; null: a stream of its own
    int device = -1;                                            // number of the GPU; -1: the engine's choice
    std::vector<std::pair<std::string, std::string>> provider;  // options of the execution provider
    int log_level = VAR_EDGE_LOG_WARNING;                       // the least of the engine's own messages
    Log log = [](int, const std::string&) {};
    Progress progress;  // may be null
};

// What a batch will be asked for, so that a backend sets up no more.
struct Plan {
    std::size_t scales;  // how many are stepped
    bool image;          // whether the picture is decoded in the end
    bool asked;          // whether anything is asked for before: tokens, logits, previews

    bool whole() const { return image && !asked; }  // a backend may run everything at once in the end
};

// Runs the stages of one batch of pictures: `begin`, `step` for scale 0, 1 … K - 1, then `decode`.
class Backend {
  public:
    virtual ~Backend() = default;
    virtual std::string name() const = 0;
    virtual const Manifest& manifest() const = 0;  // of the bundle or directory of engines that it runs
    virtual bool on_device() const = 0;            // whether its arrays are in GPU memory

    // Batch sizes that it can draw, including 1; empty if it can draw all.
    virtual const std::vector<std::int64_t>& batches() const = 0;

    // Throws Error BAD_BUNDLE or BAD_ARGUMENT if the graphs, or the engines, cannot draw with these settings.
    virtual void check(const Sampling& sampling) const = 0;

    // Starts a batch, drawn with `sampling`. Throws what `check` throws, and Error OUT_OF_MEMORY.
    virtual void begin(const std::vector<std::int64_t>& labels, const Sampling& sampling, const Plan& plan) = 0;
    virtual void step(std::size_t k, const Draw& draw, const Sampling& sampling) = 0;

    // Copies the tokens of scale k, which has been stepped: (B, L), drawn or kept.
    virtual void tokens(std::size_t k, std::int32_t* out) = 0;

    // Copies the same before `keep`: -1 where the logits hold NaN or infinity.
    virtual void drawn(std::size_t k, std::int32_t* out) = 0;

    // Copies the logits of scale k, the latest one stepped: (L, 2B, V), before guidance. Without guidance only the
    // first B columns are of this scale; the others are finite.
    virtual void logits(std::size_t k, float* out) = 0;

    // Decodes f_hat as it is after the latest step into images (B, H, W, 3), with the decoder of the sampling settings;
    // a preview with the tiny one if the bundle has it.
    virtual void decode(std::uint8_t* images, bool to_device, bool preview = false) = 0;

    // Returns for each picture decoded last whether its pixels were finite before rounding: (B,).
    virtual std::vector<std::uint8_t> finite() = 0;

    // Encodes one picture (H, W, 3) into tokens (T,).
    virtual void encode(const std::uint8_t* image, std::int32_t* tokens) = 0;

    // Frees what is set up for batches; the next `begin` sets it up again.
    virtual void free_batches() = 0;

    // Makes running graphs fail, if the engine can do that, until it is called with false. May be called from any
    // thread.
    virtual void stop(bool) {}

    // Returns another backend on the same weights. Throws Error UNSUPPORTED if the engine cannot share them.
    virtual std::unique_ptr<Backend> share() const {
        throw unsupported("share: " + name() + " does not share its weights; create another handle");
    }

    OnStage on_stage;  // of the running call; null: nothing is timed
};

}  // namespace var_edge_impl
