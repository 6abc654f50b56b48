// The scale loop: labels and a seed become pictures. Twin of runtime/pipeline.py.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "backends/base.hpp"
#include "bundle/classes.hpp"
#include "bundle/manifest.hpp"
#include "runtime/sampling.hpp"

namespace var_edge_impl {

class Pipeline;

using OnScale = std::function<bool(std::int64_t k, std::int64_t first, std::int64_t pictures)>;  // false stops

struct Request {
    std::vector<std::int64_t> labels;
    std::uint64_t seed = 0;                // picture i is drawn with seed + i
    const std::uint64_t* seeds = nullptr;  // (N,) or null: in place of it
    Sampling sampling;
    std::int64_t batch = BATCH;
    const std::uint8_t* keep = nullptr;         // (N, T) or null
    const std::int32_t* kept_tokens = nullptr;  // (N, T)
    OnScale on_scale;
    OnStage on_stage;
    Pipeline* draft = nullptr;  // draws the first `draft_scales` scales
    std::int64_t draft_scales = 0;
    std::function<void()> make_room;  // frees memory elsewhere, to be called if it runs out; may be null
};

class Pipeline {
  public:
    Pipeline(const std::filesystem::path& bundle, var_edge_backend backend, const BackendOptions& options);
    explicit Pipeline(const Pipeline& other);  // on the same weights

    // Draws images (N, H, W, 3), in GPU memory if `to_device`, and tokens (N, T), which may be null. Throws Error.
    void generate(const Request& request, std::uint8_t* images, bool to_device, std::int32_t* tokens);

    // Draws only the tokens of the first scales, and decodes nothing. Returns (N, T), with 0 for the other scales.
    std::vector<std::int32_t> draw_tokens(const Request& request, std::size_t scales);

    // Within on_scale, in its thread: the pictures of this batch as they are, the scale's tokens (B, L), and its logits
    // with guidance (B, L, V).
    void preview(std::uint8_t* images);
    void scale_tokens(std::int32_t* tokens);
    void scale_logits(float* logits);

    void encode(const std::uint8_t* images, std::int64_t count, std::int32_t* tokens);

    // Frees the arrays and recordings of the batches drawn so far; later calls set them up again.
    void free_batches() { backend_->free_batches(); }

    // Makes calls throw Error STOPPED until it is called with false. May be called from any thread.
    void stop(bool wanted);

    // Keeps the tokens of `image` that `kept` (P, P) marks, and draws the others, once for each label. `request` has no
    // keep.
    void edit(Request request, const std::uint8_t* image, const std::vector<std::uint8_t>& kept, std::uint8_t* images,
              bool to_device, std::int32_t* tokens);

    const std::string& bundle() const { return bundle_; }  // the directory, as it was given
    const Manifest& manifest() const { return backend_->manifest(); }
    const Backend& backend() const { return *backend_; }
    const ClassNames& classes() const { return classes_; }

  private:
    void check(const Sampling& sampling) const;
    void check(const Request& request, bool to_device) const;
    std::int64_t batch_size(std::int64_t left, std::int64_t batch) const;
    void generate_drafted(const Request& request, std::uint8_t* images, bool to_device, std::int32_t* tokens);
    void for_each_batch(const Request& request,
                        const std::function<void(std::int64_t start, std::int64_t size)>& draw) const;
    void draw(const Request& request, std::int64_t start, std::int64_t size, const Plan& plan);
    void begin(const Request& request, std::int64_t start, std::int64_t size, const Plan& plan);
    void copy_tokens(std::int64_t start, std::int64_t size, std::size_t scales, std::int32_t* tokens);
    void check_stop() const;

    // The scale that on_scale is being called for, and in which thread.
    struct Drawn {
        Backend* by = nullptr;
        std::size_t scale = 0;
        std::int64_t pictures = 0;
        double guidance = 0;
    };
    const Drawn& drawn(const char* function) const;

    std::string bundle_;
    ClassNames classes_;
    std::unique_ptr<Backend> backend_;
    std::atomic<bool> stop_{false};
    Drawn drawn_;
    std::atomic<std::thread::id> callback_thread_{};  // none: no callback is running
};

}  // namespace var_edge_impl
