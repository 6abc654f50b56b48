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
    std::size_t read_some(void* target, std::size_t size, std::int64_t offset) const;  // fewer at the file's end
    void read(void* target, std::size_t size, std::int64_t offset) const;

    // Throws unless size and modification time are those of the file when it was opened. A file that was replaced by a
    // rename stays open here and has not changed.
    void check_unchanged() const;

  private:
    std::string path_;
    int descriptor_;
    std::int64_t size_;
    std::int64_t modified_;  // nanoseconds
};

// Returns the content of a file. Throws Error BAD_BUNDLE, also if it has more than `most` bytes.
std::string read_bytes(const std::filesystem::path& path, std::int64_t most);

// Returns the content of a file, which must be UTF-8 without byte order mark and without NUL. Throws as read_bytes
// does.
std::string read_text(const std::filesystem::path& path, std::int64_t most);

// Parses one JSON document: no duplicate keys, nothing behind it, finite numbers, integers of 64 bits. Throws Error
// BAD_BUNDLE; the message begins with `where`.
nlohmann::json parse_json(const std::string& text, const std::string& where);

}  // namespace var_edge_impl
