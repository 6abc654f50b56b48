#include "files.hpp"

#include <fstream>
#include <vector>

#include "error.hpp"
#include "sha256.hpp"

namespace var_edge_impl {

namespace fs = std::filesystem;

namespace {

std::ifstream opened(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw bad_bundle(path.string() + ": cannot be read");
    return file;
}

}  // namespace

bool is_file(const fs::path& path) {
    std::error_code ignored;
    return fs::is_regular_file(path, ignored);
}

std::int64_t file_bytes(const fs::path& path) {
    std::error_code problem;
    const auto size = fs::file_size(path, problem);
    if (problem) throw bad_bundle(path.string() + ": cannot be read: " + problem.message());
    return std::int64_t(size);
}

std::string read_file(const fs::path& path) {
    std::ifstream file = opened(path);
    std::string text(std::size_t(file_bytes(path)), '\0');
    if (!file.read(text.data(), std::streamsize(text.size()))) throw bad_bundle(path.string() + ": cannot be read");
    return text;
}

std::string sha256(const fs::path& path, const std::function<void(std::size_t)>& on_bytes) {
    std::ifstream file = opened(path);
    Sha256 digest;
    std::vector<char> block(1 << 20);
    while (file) {
        file.read(block.data(), std::streamsize(block.size()));
        digest.add(reinterpret_cast<const std::uint8_t*>(block.data()), std::size_t(file.gcount()));
        if (on_bytes) on_bytes(std::size_t(file.gcount()));
    }
    if (file.bad()) throw bad_bundle(path.string() + ": cannot be read");
    return digest.hex();
}

}  // namespace var_edge_impl
