// The manifest: what a bundle says about itself. Twin of runtime/bundle/manifest.py.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "progress.hpp"

namespace var_edge_impl {

constexpr std::int64_t SCHEMA_VERSION = 3;
constexpr const char* MANIFEST = "manifest.json";
constexpr const char* WEIGHTS = "weights.safetensors";
constexpr std::array<const char*, 4> REQUIRED_GRAPHS = {"condition", "transformer", "bridge", "decoder"};

enum class Dtype { float32, float16, int64, int32, uint8, boolean };
std::size_t item_size(Dtype dtype);
const char* dtype_name(Dtype dtype);

using Shape = std::vector<std::int64_t>;
using Axis = std::variant<std::int64_t, std::string>;  // a size, or the name of one that changes from call to call

struct Model {
    std::string name;
    std::int64_t depth, width, heads, vocab_size, code_size, num_classes;
    std::vector<std::int64_t> patch_nums;
    std::int64_t image_size, ch;
    std::vector<std::int64_t> ch_mult;
    std::int64_t num_res_blocks;
    bool shared_aln, attn_l2_norm;
    double norm_eps, mlp_ratio, quant_resi;
    std::int64_t share_quant_resi;
    bool using_znorm;
    std::int64_t quant_conv_ks;

    std::int64_t grid() const { return patch_nums.back(); }
    std::int64_t tokens() const;
    std::int64_t phis() const;  // smoothing convolutions that the scales choose from
};

// One token map. `upsample` and `downsample` name matrices in the weight file.
struct Scale {
    std::int64_t side, tokens, offset, phi;
    std::string upsample;
    std::optional<std::string> downsample;
};

struct TensorSpec {
    std::string name;
    Dtype dtype;
    std::vector<Axis> shape;
};

struct GraphSpec {
    std::string file;
    std::vector<TensorSpec> inputs, outputs;
};

struct FileSpec {
    std::int64_t size;
    std::string sha256;
    std::string stamp = {};  // of the file that was checked
};

struct Manifest {
    Model model;
    std::string precision;
    std::optional<std::string> classes;
    std::vector<Scale> scales;
    std::vector<std::string> step_constants;  // inputs of the transformer: at scale k row k of the equally named weight
    std::map<std::string, GraphSpec> graphs;
    std::map<std::string, FileSpec> files;
    std::string vqvae_sha256;  // of the VQVAE's tensors before any rounding; "" in old bundles

    // Parses and checks a manifest's text; `where` begins every message. Throws Error BAD_BUNDLE.
    static Manifest parse(const std::string& text, const std::string& where);

    // Loads the manifest of a directory. Checks the size of every file and, if `verify` is set, its SHA-256.
    static Manifest load(const std::filesystem::path& bundle, bool verify, const Progress& progress = {});

    // Checks a file that is opened after `load`, if it has been touched since. Throws Error BAD_BUNDLE.
    void check_still(const std::filesystem::path& bundle, const std::string& name, bool verify) const;

    // Returns the tensors of the weight file that the runtime passes to the graphs.
    std::set<std::string> runtime_tensors() const;

  private:
    void check(const std::string& where) const;
    void check_model(const std::string& where) const;
    void check_scales(const std::string& where) const;
    void check_names(const std::string& where) const;
};

}  // namespace var_edge_impl
