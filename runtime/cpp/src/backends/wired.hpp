// What both backends do the same way: run the stages of a `Wiring`, and copy out what is asked for. Twin of
// runtime/backends/wired.py.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "backends/base.hpp"
#include "backends/wiring.hpp"

namespace var_edge_impl {

// The arrays of one batch size and the stages on them, ready to run.
class Batch {
  public:
    Batch(std::unique_ptr<Arrays> made, std::int64_t size, bool smooth, const Manifest& manifest,
          const std::vector<ScaleConstants>& constants);
    virtual ~Batch() = default;
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    virtual void begin() = 0;              // runs condition on the labels that were set
    virtual void step(std::size_t k) = 0;  // runs transformer and bridge on the settings that were set
    virtual void decode(std::uint8_t* images, bool to_device) = 0;

    const std::unique_ptr<Arrays> arrays;
    Wiring wiring;
    std::int64_t latest = -1;  // the scale stepped last
};

// Throws Error BAD_BUNDLE unless the bundle has the graph of smooth sampling.
void check_smooth(const Manifest& manifest);

// See `Backend`. What differs from engine to engine is `prepare`, which readies a batch size.
class WiredBackend : public Backend {
  public:
    explicit WiredBackend(std::shared_ptr<const Manifest> manifest) : manifest_(std::move(manifest)) {}

    const Manifest& manifest() const final { return *manifest_; }
    void begin(const std::vector<std::int64_t>& labels, bool smooth) final;
    void step(std::size_t k, const Draw& draw, const Sampling& sampling) final;
    void tokens(std::size_t k, std::int32_t* out) final;
    void drawn(std::size_t k, std::int32_t* out) final;
    void logits(std::size_t k, float* out) final;
    std::vector<std::uint8_t> finite() final;
    void decode(std::uint8_t* images, bool to_device) final;

  protected:
    virtual std::unique_ptr<Batch> prepare(std::int64_t size, bool smooth) = 0;

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

    std::unique_ptr<Batch> batch_;  // every derived destructor frees it first: it uses what that holds

  private:
    std::shared_ptr<const Manifest> manifest_;
};

}  // namespace var_edge_impl
