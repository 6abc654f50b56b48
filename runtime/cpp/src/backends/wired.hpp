// What both backends do the same way: run the stages of a `Wiring`, and copy out what is asked for. Twin of
// runtime/backends/wired.py.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/base.hpp"
#include "backends/wiring.hpp"

namespace var_edge_impl {

// The arrays of one batch size and the stages on them, ready to run.
class Batch {
  public:
    Batch(std::unique_ptr<Arrays> made, const Wanted& wanted, const Manifest& manifest,
          const std::vector<ScaleConstants>& constants);
    virtual ~Batch() = default;
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    // Sets up what the plan needs, unless it is there. Comes before `begin`. `decoder` is the graph of the picture's.
    virtual void prepare(const Plan& plan, const std::string& decoder) = 0;

    virtual void begin() = 0;              // the labels are set
    virtual void step(std::size_t k) = 0;  // the settings of the scale are set
    // Runs this decoder's graph. Leaves the results in the host's memory, and the pictures for the stages.
    virtual void decode(const std::string& decoder) = 0;
    virtual Array logits() const { return wiring.logits; }

    const std::unique_ptr<Arrays> arrays;
    Wiring wiring;
    std::int64_t latest = -1;  // the scale stepped last
    bool decoded = false;      // since then
};

// How many kinds of batches (smooth sampling, guided scales) stay prepared, the newest: else those of every number of
// guided scales that was ever drawn would stay until memory runs out.
constexpr std::size_t KINDS_KEPT = 3;

// Throws Error BAD_BUNDLE unless the bundle has the graph of smooth sampling.
void check_smooth(const Manifest& manifest);

// Returns the decoders that a bundle has.
std::vector<std::string> decoder_graphs(const Manifest& manifest);

// Returns the graphs to load at once: those that every bundle has, and the tiny decoder if there is one.
std::vector<std::string> drawing_graphs(const Manifest& manifest);

// See `Backend`. What differs from engine to engine is `new_batch`, which makes the arrays of a batch size.
class WiredBackend : public Backend {
  public:
    // `keeps_batches`: whether all batch sizes of the newest kinds stay prepared, or only the latest batch.
    WiredBackend(std::shared_ptr<const Manifest> manifest, bool keeps_batches)
        : manifest_(std::move(manifest)), keeps_batches_(keeps_batches) {}

    const Manifest& manifest() const final { return *manifest_; }
    void check(const Sampling& sampling) const override;
    void begin(const std::vector<std::int64_t>& labels, const Sampling& sampling, const Plan& plan) final;
    void step(std::size_t k, const Draw& draw, const Sampling& sampling) final;
    void tokens(std::size_t k, std::int32_t* out) final;
    void drawn(std::size_t k, std::int32_t* out) final;
    void logits(std::size_t k, float* out) final;
    std::vector<std::uint8_t> finite() final;
    void decode(std::uint8_t* images, bool to_device, bool preview) final;
    void free_batches() override;  // also in every derived destructor: batches use members of the derived class

  protected:
    virtual std::unique_ptr<Batch> new_batch(const Wanted& wanted) = 0;

    // Returns what frees the memory of batches, or null if none is held.
    std::function<void()> room_of_batches();

    // Held during every call: makes the backend's GPU the current device of the calling thread.
    virtual std::shared_ptr<void> current_device() const { return {}; }

    // Waits until everything that was queued has run.
    virtual void synchronize() const {}

    // Runs `work`, and tells `on_stage`, if there is one, how long it took.
    template <typename Work>
    void timed(const char* stage, std::int64_t scale, Work&& work) {
        if (!on_stage) return work();
        synchronize();
        const auto start = std::chrono::steady_clock::now();
        work();
        synchronize();
        on_stage(stage, scale, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }

  private:
    Batch& prepared(const Wanted& wanted, const Plan& plan);
    Batch& prepare(const Wanted& wanted, const Plan& plan);
    void free_oldest_kind(const Wanted& wanted);
    void copy_result(std::size_t part, const char* name, void* out) const;

    std::shared_ptr<const Manifest> manifest_;
    const bool keeps_batches_;
    std::map<Wanted, std::unique_ptr<Batch>> batches_;
    std::vector<std::pair<bool, std::size_t>> kinds_;  // smooth sampling and guided scales, the newest last
    Batch* batch_ = nullptr;                           // the one that is drawn
    const char* decoder_ = DECODER;                    // of its picture
};

}  // namespace var_edge_impl
