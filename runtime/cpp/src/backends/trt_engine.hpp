// One TensorRT engine: read from its file, checked against the manifest, with one context for each profile. Twin of
// runtime/backends/trt_engine.py.
#pragma once

#include <NvInferRuntime.h>

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/base.hpp"
#include "backends/cuda.hpp"
#include "backends/kernel_cache.hpp"
#include "bundle/engine_record.hpp"

namespace var_edge_impl {

// Which of the two this library was compiled against; the version numbers of TensorRT for RTX count from 1 again.
#ifdef TRT_MAJOR_RTX
constexpr const char* FLAVOUR = "tensorrt_rtx";
constexpr const char* FLAVOUR_OPTION = "tensorrt-rtx";  // of python -m export.engine
#elif NV_TENSORRT_MAJOR >= 10
constexpr const char* FLAVOUR = "tensorrt";
constexpr const char* FLAVOUR_OPTION = "tensorrt";
#else
#error "var_edge needs TensorRT 10 or newer, or TensorRT for RTX"
#endif

// Returns the version of the loaded TensorRT, with all its numbers: "10.3.0.30".
std::string tensorrt_version();

// What TensorRT said: errors make the message when something fails, warnings go to the application.
class TrtLog final : public nvinfer1::ILogger {
  public:
    void log(Severity severity, const char* text) noexcept override;  // in any thread
    std::string reason();                                             // the errors since the last call

  private:
    friend class OpenLog;
    std::mutex mutex_;
    std::vector<std::string> errors_;
    Log forward_;
};

// A model's logger. TensorRT keeps using the first logger of a process even after its model was freed, so loggers are
// never destroyed but reused by later models.
class OpenLog {
  public:
    explicit OpenLog(Log forward);
    ~OpenLog();
    OpenLog(const OpenLog&) = delete;
    OpenLog& operator=(const OpenLog&) = delete;
    TrtLog& operator*() const { return *log_; }

  private:
    TrtLog* log_;
};

// An engine on the GPU, with one context for each profile in use.
class LoadedEngine {
  public:
    // Throws Error BAD_BUNDLE if it is not what manifest and record say, OUT_OF_MEMORY. Keeps references to all but
    // `graph`.
    LoadedEngine(nvinfer1::IRuntime& runtime, TrtLog& log, const Cuda& cuda, KernelCache& kernels,
                 const std::filesystem::path& path, const GraphSpec& graph, const Engine& record);

    // Returns the scratch memory that the largest profile needs.
    std::size_t scratch_bytes() const;

    // Sets the scratch memory to run with. Other engines on the same stream may use it too.
    void use(const Array& scratch);

    // Frees the memory of the contexts; the next run makes its own. No run may be queued.
    void free_contexts();

    // Queues one run with this profile on the stage's arrays. The first run of a profile makes its context.
    void enqueue(std::size_t profile, const Stage& stage);

  private:
    using Context = std::unique_ptr<nvinfer1::IExecutionContext>;

    Context new_context();
    Context context(std::size_t profile);
    void bind(nvinfer1::IExecutionContext& context, std::size_t profile, const std::string& name,
              const Array& array) const;
    Error problem(var_edge_status status, const std::string& what) const;
    void check_tensors(const GraphSpec& graph) const;
    void check_profiles() const;

    TrtLog* log_;
    const Cuda* cuda_;
    KernelCache* kernels_;
    std::string path_;
    const Engine* record_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    Array scratch_;
#ifdef TRT_MAJOR_RTX
    std::unique_ptr<nvinfer1::IRuntimeConfig> config_;  // outlives the contexts
#endif
    std::vector<Context> contexts_;  // by profile
};

}  // namespace var_edge_impl
