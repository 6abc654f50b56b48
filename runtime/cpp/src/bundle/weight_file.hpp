// The weight file, a safetensors file: its header, and single tensors. Twin of runtime/bundle/weight_file.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "bundle/manifest.hpp"
#include "files/bounded.hpp"

namespace var_edge_impl {

struct StoredTensor {
    std::string dtype;  // "F32"
    Shape shape;
    std::int64_t begin, end;  // in the file's data
};

// Parses the header (JSON) of a file that has `data_bytes` of data behind it. Throws Error BAD_BUNDLE.
std::map<std::string, StoredTensor> parse_weight_header(const std::string& text, std::int64_t data_bytes,
                                                        const std::string& where);

struct HostTensor {
    Shape shape;
    Dtype dtype;
    std::vector<std::uint8_t> data;
};

class WeightFile {
  public:
    explicit WeightFile(const std::filesystem::path& path);
    const StoredTensor& at(const std::string& name) const;  // throws Error BAD_BUNDLE if there is none
    HostTensor read(const std::string& name) const;

  private:
    std::string path_;
    InputFile file_;
    std::int64_t data_start_;
    std::map<std::string, StoredTensor> tensors_;
};

}  // namespace var_edge_impl
