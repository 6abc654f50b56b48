// Files read whole, and their fingerprints. Twin of runtime/files.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace var_edge_impl {

bool is_file(const std::filesystem::path& path);
std::int64_t file_bytes(const std::filesystem::path& path);

// Throws Error BAD_BUNDLE.
std::string read_file(const std::filesystem::path& path);

// Hexadecimal SHA-256 of a file's content. `on_bytes` hears how many were read since it was called last.
std::string sha256(const std::filesystem::path& path, const std::function<void(std::size_t)>& on_bytes = {});

}  // namespace var_edge_impl
