// The scale loop: labels and a seed become pictures. Twin of runtime/pipeline.py.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend.hpp"
#include "manifest.hpp"
#include "sampling.hpp"

namespace var_edge_impl {

struct Request {
    std::vector<std::int64_t> labels;
    std::uint64_t seed = 0;
    Sampling sampling;
    std::int64_t batch = BATCH;
    const std::uint8_t* keep = nullptr;         // (N, T) or null
    const std::int32_t* kept_tokens = nullptr;  // (N, T)
    std::function<bool(std::int64_t k, std::int64_t first, std::int64_t pictures)> on_scale;  // false stops
};

class Pipeline {
  public:
    Pipeline(const std::filesystem::path& bundle, var_edge_backend backend, const BackendOptions& options);

    // images (N, H, W, 3), on the device or not; tokens (N, T) or null. Throws Error.
    void generate(const Request& request, std::uint8_t* images, bool to_device, std::int32_t* tokens);

    // Within on_scale: the pictures of this turn as they are.
    void preview(std::uint8_t* images);

    void encode(const std::uint8_t* images, std::int64_t count, std::int32_t* tokens);

    // `request` without keep: what `kept` (P, P) marks of `image` is kept, and drawn anew for each label.
    void edit(Request request, const std::uint8_t* image, const std::vector<std::uint8_t>& kept, std::uint8_t* images,
              bool to_device, std::int32_t* tokens);

    const Manifest& manifest() const { return manifest_; }
    const Backend& backend() const { return *backend_; }
    const std::vector<std::vector<std::string>>& classes() const { return classes_; }

  private:
    void check(const Request& request, bool to_device) const;
    std::int64_t turn_size(std::int64_t left, std::int64_t batch) const;
    void draw(const Request& request, std::int64_t start, std::int64_t size);

    Manifest manifest_;
    std::unique_ptr<Backend> backend_;
    std::vector<std::vector<std::string>> classes_;  // names by label, the usual one first; empty if unknown
    bool drawing_ = false;              // whether on_scale is being called
};

}  // namespace var_edge_impl
