// The kernels that TensorRT for RTX has compiled on this machine, kept for the next process. Twin of
// runtime/backends/kernel_cache.py.
#pragma once

#include <NvInferRuntime.h>

#include <filesystem>
#include <memory>
#include <string>

namespace var_edge_impl {

// A runtime cache that all engines of one build share, in a file in the user's cache directory. TensorRT checks that
// the file fits this GPU, driver and TensorRT. A file that cannot be read or written costs time and is no error. Of
// TensorRT, which compiles nothing at run time, it holds nothing.
class KernelCache {
  public:
    explicit KernelCache(const std::string& tag);  // of the engines' build

#ifdef TRT_MAJOR_RTX
    // Makes the contexts of this runtime configuration use the cache, which must outlive them.
    void attach(nvinfer1::IRuntimeConfig& config);
#endif

    // Writes the file if kernels were compiled since it was read or written.
    void save();

  private:
    std::filesystem::path path_;  // empty: there is no directory for it
    std::string kept_;            // content of the file
#ifdef TRT_MAJOR_RTX
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
    bool attached_ = false;  // since the file was written
#endif
};

}  // namespace var_edge_impl
