// Fingerprints of files. Twin of runtime/files/atomic.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace var_edge_impl {

bool is_file(const std::filesystem::path& path);

// Throws Error BAD_BUNDLE.
std::int64_t file_bytes(const std::filesystem::path& path);

// Which content a path leads to, without reading it: any writing to the file or replacing of it gives another stamp.
std::string stamp(const std::filesystem::path& path);

// Hexadecimal SHA-256 of a file's content. `on_bytes` hears how many were read since it was called last.
std::string sha256(const std::filesystem::path& path, const std::function<void(std::size_t)>& on_bytes = {});

}  // namespace var_edge_impl
