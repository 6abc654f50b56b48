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

// A copy of the columns with label between an array (R, 2B, …) and one without the other half, (R, B, …).
struct ColumnCopy {
    Array target, source;
};

// One run of a graph on fixed arrays.
struct Stage {
    std::string graph;
    Tensors inputs, outputs;
    std::vector<ColumnCopy> copies = {};  // made before it runs
};

// Small arrays that the host sets or reads, in one block of memory, so that one copy moves several of them. They are in
// parts, such as one for each scale.
class SharedBlock {
  public:
    using Part = std::vector<std::tuple<std::string, Shape, Dtype>>;

    SharedBlock(Arrays& arrays, const std::vector<Part>& parts);

    template <typename T>
    T* host(std::size_t part, const std::string& name) const {
        return reinterpret_cast<T*>(host_ + (stages_[part].at(name).data - block_.data));
    }
    const Tensors& stages(std::size_t part) const { return stages_[part]; }

    // These are queued.
    void upload() const { arrays_->upload(block_.data, host_, block_.bytes()); }
    void upload(std::size_t part) const;
    void fetch() const { arrays_->fetch(host_, block_.data, block_.bytes()); }

  private:
    Arrays* arrays_;
    std::uint8_t* host_;
    Array block_;
    std::vector<std::size_t> starts_;  // of the parts in the block, and its end
    std::vector<Tensors> stages_;      // by part
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

// What arrays are made for: a batch size, smooth sampling, and the number of guided scales.
struct Wanted {
    std::int64_t size;
    bool smooth;
    std::size_t guided;

    bool operator<(const Wanted& other) const {
        return std::tie(size, smooth, guided) < std::tie(other.size, other.smooth, other.guided);
    }
};

// The arrays of one batch size, allocated once, and the stages on them. Drawing allocates nothing.
//
// The guided scales run with 2B columns. The others run the same transformer on the B columns with label, for which
// there is a second set of arrays. The bridge always reads and writes 2B columns; there its guidance is 0.
class Wiring {
  public:
    Wiring(const Wanted& wanted, const Manifest& manifest, const std::vector<ScaleConstants>& constants,
           Arrays& arrays);

    // Write on the host what is uploaded before the stages run.
    void set_labels(const std::int64_t* labels) const;
    void set_scale(std::size_t k, const Draw& draw, const Sampling& sampling) const;

    // Queue uploads.
    void upload_labels() const { settings.upload(0); }
    void upload_scale(std::size_t k) const { settings.upload(k + 1); }

    const Array& f_hat_after(std::size_t k) const { return f_hat_[(k + 1) % 2]; }
    // The runs of a decoder's graph after scale k, one for each picture.
    std::vector<Stage> decoders(const std::string& graph, std::size_t k) const;
    // All runs of a batch, with each of these decoders.
    std::vector<Stage> stages(const std::vector<std::string>& decoder_graphs) const;

    std::int64_t size;
    bool smooth;
    std::size_t guided;    // scales
    SharedBlock settings;  // the labels, then what each scale is drawn with
    SharedBlock results;   // the tokens of each scale, then the pictures and whether they are finite
    Array logits;          // (L, 2B, V) of the scale stepped last, in its first rows
    Stage condition;
    std::vector<std::pair<Stage, Stage>> steps;  // transformer and bridge, by scale

  private:
    std::vector<std::int64_t> counts_;  // tokens, by scale
    std::int64_t vocab_size_;
    Array f_hat_[2];  // used alternately: a graph may write an output before it has read all of its input
};

}  // namespace var_edge_impl
