// `engine.json`: what the engines of a directory were built from, with what, and for which device. Twin of
// runtime/bundle/engine_record.py.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bundle/manifest.hpp"

namespace var_edge_impl {

constexpr const char* ENGINE_RECORD = "engine.json";
constexpr const char* ENGINES = "engines";  // in a bundle: one directory of engines for each kind of device

struct Built {
    std::string flavour;  // "tensorrt" or "tensorrt_rtx"
    std::string version;
    std::vector<std::string> compute_capabilities;
    std::optional<std::string> gpu;
    bool hardware_compatible, version_compatible;

    std::string tag() const;  // the name of their directory, such as tensorrt_rtx-1.7.1.116-sm86
};

struct Engine {
    std::string file, source_sha256;
    std::vector<std::map<std::string, Shape>> profiles;  // every input's fixed shape
};

struct EngineRecord {
    Built built;
    std::string weights_sha256;
    std::vector<std::int64_t> batches;
    std::int64_t guidance_scales;  // they draw with guidance at this number of scales, or at more
    std::map<std::string, Engine> engines;

    static EngineRecord parse(const std::string& text, const std::string& where);
    static EngineRecord load(const std::filesystem::path& folder);

    // Whether the engines were built from the bundle with this manifest.
    bool fits(const Manifest& manifest) const;

    // Returns the index of the transformer's and the bridge's profile for a batch size and a scale.
    std::size_t profile(std::int64_t batch, std::size_t scale, std::size_t scales) const;

    // Returns the index of the transformer's profile without guidance, for a scale from `guidance_scales` on.
    std::size_t unguided_profile(std::int64_t batch, std::size_t scale, std::size_t scales) const;
};

// Returns the sizes of the symbolic axes at scale k. The last scale has no next one: it computes the input of scale 1
// again.
std::map<std::string, std::int64_t> scale_sizes(const std::vector<Scale>& scales, std::size_t k, std::int64_t batch);

// Returns the directories of engines in a bundle, sorted by name.
std::vector<std::filesystem::path> engine_folders(const std::filesystem::path& bundle);

}  // namespace var_edge_impl
