// Assigns an array to every input and output of every stage, the same for all engines. Twin of
// runtime/backends/wiring.py.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "backends/arrays.hpp"
#include "bundle/manifest.hpp"
#include "runtime/sampling.hpp"

namespace var_edge_impl {

constexpr const char* SMOOTH_BRIDGE = "bridge_smooth";
constexpr std::size_t ALIGNMENT = 256;  // bytes; what TensorRT asks of an address

using Tensors = std::map<std::string, Array>;

// One run of a graph on fixed arrays.
struct Stage {
    std::string graph;
    Tensors inputs, outputs;
};

// Small inputs that the host sets. They are parts of one block, so that one copy uploads all of them.
class Staged {
  public:
    Staged(Arrays& arrays, const std::vector<std::tuple<std::string, Shape, Dtype>>& specs);
    template <typename T>
    T* host(const std::string& name) const {
        return reinterpret_cast<T*>(host_.at(name));
    }
    const Tensors& stages() const { return stages_; }
    void upload() const { arrays_->upload(block_, host_block_, size_); }

  private:
    Arrays* arrays_;
    std::size_t size_ = 0;
    std::uint8_t *host_block_, *block_;
    std::map<std::string, std::uint8_t*> host_;
    Tensors stages_;
};

// Inputs of the two graphs of a scale that depend on the scale only.
struct ScaleConstants {
    Tensors transformer, bridge;
};

// Returns the constants of each scale. Throws Error BAD_BUNDLE if the weight file lacks a tensor.
std::vector<ScaleConstants> scale_constants(const std::filesystem::path& bundle, const Manifest& manifest,
                                            Arrays& arrays);

// What one scale of a batch is drawn with: `randoms` are uniforms (B, L) or, smooth, noise (B, L, V); `keep` and
// `kept_tokens` (B, L) or null.
struct Draw {
    const float* randoms;
    double guidance;
    const std::uint8_t* keep;
    const std::int32_t* kept_tokens;
};

// The arrays of one batch size, allocated once, and the stages on them. Drawing allocates nothing.
//
// Token-major arrays are as long as the largest scale needs; a smaller one uses the first rows. The past keys and
// values are the first rows of caches for all T tokens, and the new ones go right behind them.
class Wiring {
  public:
    Wiring(std::int64_t size, bool smooth, const Manifest& manifest, const std::vector<ScaleConstants>& constants,
           Arrays& arrays);

    void set_labels(const std::int64_t* labels) const;
    void start() const;  // queues the upload of the labels and an empty f_hat
    void set_scale(std::size_t k, const Draw& draw, const Sampling& sampling) const;
    const Array& f_hat_after(std::size_t k) const { return f_hat_[(k + 1) % 2]; }
    std::vector<Stage> decoders(std::size_t k) const;  // after scale k, one for each picture
    std::vector<std::uint8_t> finite() const;          // (B,): whether the pictures decoded last were, before rounding
    std::vector<Stage> stages() const;                 // all of a batch

    std::int64_t size;
    bool smooth;
    std::vector<Staged> labels;    // one
    std::vector<Staged> settings;  // by scale
    std::vector<Array> drawn, tokens;
    Array images;
    Array logits;  // (L, 2B, V) of the scale stepped last, in its first rows
    Stage condition;
    std::vector<std::pair<Stage, Stage>> steps;  // transformer and bridge, by scale

  private:
    Arrays* arrays_;
    std::vector<std::int64_t> counts_;  // tokens, by scale
    std::int64_t vocab_size_;
    Array finite_;    // (B, ALIGNMENT): a picture's is the first of its row
    Array f_hat_[2];  // used alternately: a graph may write an output before it has read all of its input
};

}  // namespace var_edge_impl
