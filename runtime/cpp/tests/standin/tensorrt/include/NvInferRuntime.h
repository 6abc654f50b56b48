// The part of TensorRT's interface that var_edge uses, declared for the stand-in in nvinfer.cpp: that of
// the version in NvInferVersion.h. Only names, arguments and numbers are those of TensorRT; its memory layout is not.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "NvInferVersion.h"

// 10.1 brought scratch memory that says its size, 10.7 the reader that also reads into the GPU's memory.
#if defined(TRT_MAJOR_RTX) || NV_TENSORRT_MAJOR > 10
#define STANDIN_MINOR 99
#else
#define STANDIN_MINOR NV_TENSORRT_MINOR
#endif

namespace nvinfer1 {

struct Dims {
    static constexpr std::int32_t MAX_DIMS = 8;
    std::int32_t nbDims;
    std::int64_t d[MAX_DIMS];
};

enum class DataType : std::int32_t {
    kFLOAT = 0,
    kHALF = 1,
    kINT8 = 2,
    kINT32 = 3,
    kBOOL = 4,
    kUINT8 = 5,
    kFP8 = 6,
    kBF16 = 7,
    kINT64 = 8
};
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class OptProfileSelector : std::int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
enum class ExecutionContextAllocationStrategy : std::int32_t { kSTATIC = 0, kON_PROFILE_CHANGE = 1, kUSER_MANAGED = 2 };
enum class SeekPosition : std::int32_t { kSET = 0, kCUR = 1, kEND = 2 };

class ILogger {
  public:
    enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual ~ILogger() = default;
    virtual void log(Severity severity, const char* text) noexcept = 0;
};

class IHostMemory {
  public:
    virtual ~IHostMemory() = default;
    virtual void* data() const noexcept = 0;
    virtual std::size_t size() const noexcept = 0;
};

#ifndef TRT_MAJOR_RTX
class IStreamReader {
  public:
    virtual ~IStreamReader() = default;
    virtual std::int64_t read(void* target, std::int64_t size) = 0;
};
#endif

#if STANDIN_MINOR >= 7
class IStreamReaderV2 {
  public:
    virtual ~IStreamReaderV2() = default;
    virtual std::int64_t read(void* target, std::int64_t size, cudaStream_t stream) noexcept = 0;
    virtual bool seek(std::int64_t offset, SeekPosition where) noexcept = 0;
};
#endif

#ifdef TRT_MAJOR_RTX
enum class DynamicShapesKernelSpecializationStrategy : std::int32_t { kLAZY = 0, kEAGER = 1, kNONE = 2 };

class IRuntimeCache {
  public:
    virtual ~IRuntimeCache() = default;
    virtual IHostMemory* serialize() const noexcept = 0;
    virtual bool deserialize(const void* blob, std::size_t size) noexcept = 0;
    virtual void reset() noexcept = 0;
};

class IRuntimeConfig {
  public:
    virtual ~IRuntimeConfig() = default;
    virtual void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy strategy) noexcept = 0;
    virtual void setDynamicShapesKernelSpecializationStrategy(
        DynamicShapesKernelSpecializationStrategy strategy) noexcept = 0;
    virtual IRuntimeCache* createRuntimeCache() const noexcept = 0;
    virtual bool setRuntimeCache(const IRuntimeCache& cache) noexcept = 0;
};
#endif

class IExecutionContext {
  public:
    virtual ~IExecutionContext() = default;
    virtual bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t stream) noexcept = 0;
    virtual void setDeviceMemory(void* memory) noexcept = 0;
#if STANDIN_MINOR >= 1
    virtual void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept = 0;
#endif
    virtual bool setInputShape(const char* name, const Dims& dims) noexcept = 0;
    virtual bool setTensorAddress(const char* name, void* data) noexcept = 0;
    virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class ICudaEngine {
  public:
    virtual ~ICudaEngine() = default;
    virtual std::int32_t getNbIOTensors() const noexcept = 0;
    virtual const char* getIOTensorName(std::int32_t index) const noexcept = 0;
    virtual TensorIOMode getTensorIOMode(const char* name) const noexcept = 0;
    virtual DataType getTensorDataType(const char* name) const noexcept = 0;
    virtual std::int32_t getNbOptimizationProfiles() const noexcept = 0;
    virtual Dims getProfileShape(const char* name, std::int32_t profile, OptProfileSelector select) const noexcept = 0;
#if STANDIN_MINOR >= 1
    virtual std::int64_t getDeviceMemorySizeForProfileV2(std::int32_t profile) const noexcept = 0;
#else
    virtual std::size_t getDeviceMemorySizeForProfile(std::int32_t profile) const noexcept = 0;
#endif
#ifdef TRT_MAJOR_RTX
    virtual IRuntimeConfig* createRuntimeConfig() noexcept = 0;
    virtual IExecutionContext* createExecutionContext(IRuntimeConfig* config) noexcept = 0;
#else
    virtual IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept = 0;
#endif
};

class IRuntime {
  public:
    virtual ~IRuntime() = default;
    virtual void setEngineHostCodeAllowed(bool allowed) noexcept = 0;
#if STANDIN_MINOR >= 7
    virtual ICudaEngine* deserializeCudaEngine(IStreamReaderV2& reader) = 0;
#endif
#ifndef TRT_MAJOR_RTX
    virtual ICudaEngine* deserializeCudaEngine(IStreamReader& reader) = 0;
#endif
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1

extern "C" {
std::int32_t getInferLibMajorVersion() noexcept;
std::int32_t getInferLibMinorVersion() noexcept;
std::int32_t getInferLibPatchVersion() noexcept;
std::int32_t getInferLibBuildVersion() noexcept;
}
