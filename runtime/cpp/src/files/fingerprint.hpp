// Fingerprints of files. Twin of runtime/files/atomic.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace var_edge_impl {

bool is_file(const std::filesystem::path& path);

// Returns the size of a file in bytes. Throws Error BAD_BUNDLE.
std::int64_t file_bytes(const std::filesystem::path& path);

// Returns a text that changes whenever the file at this path is written or replaced. Does not read the file.
std::string stamp(const std::filesystem::path& path);

// Returns the SHA-256 of a file in hexadecimal. `on_bytes` receives how many bytes were read since it was called last.
std::string sha256(const std::filesystem::path& path, const std::function<void(std::size_t)>& on_bytes = {});

}  // namespace var_edge_impl
