#include "backends/kernel_cache.hpp"

#include <cstdlib>

#include <unistd.h>

#include "errors.hpp"
#include "files/bounded.hpp"

namespace var_edge_impl {

namespace fs = std::filesystem;

namespace {

[[maybe_unused]] constexpr std::int64_t MOST_BYTES = 1 << 30;  // a larger file is not ours

// The user's directory for files that can be made again at any time; empty if the environment names none. A path that
// is not absolute is to be ignored (XDG Base Directory Specification).
fs::path cache_directory() {
    const auto named = [](const char* variable) {
        const char* value = std::getenv(variable);
        const fs::path path = value ? value : "";
        return path.is_absolute() ? path : fs::path();
    };
    if (const fs::path caches = named("XDG_CACHE_HOME"); !caches.empty()) return caches / "var-edge";
    const fs::path home = named("HOME");
    return home.empty() ? home : home / ".cache" / "var-edge";
}

// Writes a file that appears at `path` complete or not at all. Returns whether it did.
[[maybe_unused]] bool write_atomically(const fs::path& path, const std::string& content) {
    std::error_code problem;
    fs::create_directories(path.parent_path(), problem);
    std::string aside = (path.parent_path() / ("." + path.filename().string() + ".XXXXXX")).string();
    const int descriptor = ::mkstemp(aside.data());
    if (descriptor < 0) return false;
    std::size_t written = 0;
    while (written < content.size()) {
        const ssize_t count = ::write(descriptor, content.data() + written, content.size() - written);
        if (count <= 0) break;
        written += std::size_t(count);
    }
    const bool whole = written == content.size() && ::fsync(descriptor) == 0;
    ::close(descriptor);
    if (whole && ::rename(aside.c_str(), path.c_str()) == 0) return true;
    ::unlink(aside.c_str());
    return false;
}

}  // namespace

KernelCache::KernelCache(const std::string& tag) : path_(cache_directory()) {
    if (!path_.empty()) path_ /= tag + ".kernels";
}

#ifdef TRT_MAJOR_RTX

void KernelCache::attach(nvinfer1::IRuntimeConfig& config) {
    if (!cache_) {
        cache_.reset(config.createRuntimeCache());
        if (!cache_) return;
        try {
            if (!path_.empty()) kept_ = read_bytes(path_, MOST_BYTES);
        } catch (const Error&) {  // there is none yet
        }
        if (!kept_.empty() && !cache_->deserialize(kept_.data(), kept_.size())) kept_.clear();
    }
    config.setRuntimeCache(*cache_);
    attached_ = true;
}

void KernelCache::save() {
    if (!cache_ || !attached_ || path_.empty()) return;
    attached_ = false;
    const std::unique_ptr<nvinfer1::IHostMemory> memory(cache_->serialize());
    if (!memory) return;
    std::string content(static_cast<const char*>(memory->data()), memory->size());
    if (content != kept_ && write_atomically(path_, content)) kept_ = std::move(content);
}

#else

void KernelCache::save() {}

#endif

}  // namespace var_edge_impl
