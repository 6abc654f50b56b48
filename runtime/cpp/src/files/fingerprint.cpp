#include "files/fingerprint.hpp"

#include <vector>

#include <sys/stat.h>

#include "errors.hpp"
#include "files/bounded.hpp"
#include "files/sha256.hpp"

namespace var_edge_impl {

namespace fs = std::filesystem;

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

std::string stamp(const fs::path& path) {
    struct stat state{};
    if (::stat(path.c_str(), &state) != 0) throw bad_bundle(path.string() + ": missing; copy the whole bundle again");
    std::string text;
    for (const auto part : {std::uint64_t(state.st_dev), std::uint64_t(state.st_ino), std::uint64_t(state.st_size),
                            std::uint64_t(state.st_mtim.tv_sec), std::uint64_t(state.st_mtim.tv_nsec),
                            std::uint64_t(state.st_ctim.tv_sec), std::uint64_t(state.st_ctim.tv_nsec)}) {
        text += std::to_string(part) + " ";
    }
    return text;
}

std::string sha256(const fs::path& path, const std::function<void(std::size_t)>& on_bytes) {
    const InputFile file(path);
    Sha256 digest;
    std::vector<std::uint8_t> block(1 << 20);
    for (std::int64_t offset = 0;;) {
        const std::size_t count = file.read_some(block.data(), block.size(), offset);
        if (!count) return digest.hex();
        digest.add(block.data(), count);
        offset += std::int64_t(count);
        if (on_bytes) on_bytes(count);
    }
}

}  // namespace var_edge_impl
