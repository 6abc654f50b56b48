// The only way in for files: regular files of bounded size, and JSON of bounded depth, counts and numbers. Twin of
// runtime/files/bounded.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace var_edge_impl {

// A regular file, open for reading. Throws Error BAD_BUNDLE, OUT_OF_MEMORY.
class InputFile {
  public:
    explicit InputFile(const std::filesystem::path& path, std::int64_t most = INT64_MAX);  // bytes
    ~InputFile();
    InputFile(const InputFile&) = delete;
    InputFile& operator=(const InputFile&) = delete;

    std::int64_t size() const { return size_; }
    std::size_t read_some(void* target, std::size_t size, std::int64_t offset) const;  // less only where the file ends
    void read(void* target, std::size_t size, std::int64_t offset) const;

    // Throws unless the content is the one that was opened, as its size and its time say. A file that another one
    // replaced by a rename is still here and still the same.
    void check_unchanged() const;

  private:
    std::string path_;
    int descriptor_;
    std::int64_t size_;
    std::int64_t modified_;  // nanoseconds
};

// All of it. Throws Error BAD_BUNDLE, also for more than `most` bytes.
std::string read_bytes(const std::filesystem::path& path, std::int64_t most);

// The same as UTF-8 without byte order mark and without NUL.
std::string read_text(const std::filesystem::path& path, std::int64_t most);

// One JSON document: no key twice, no text behind it, finite numbers, integers of 64 bits. Throws Error BAD_BUNDLE,
// whose message begins with `where`.
nlohmann::json parse_json(const std::string& text, const std::string& where);

}  // namespace var_edge_impl
