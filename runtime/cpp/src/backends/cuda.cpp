#include "backends/cuda.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>

namespace var_edge_impl {

namespace {

void check(cudaError_t status, const char* call) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // forget it, or the application finds it after a call of its own
    const std::string problem = std::string("CUDA: ") + call + ": " + cudaGetErrorString(status);
    if (status == cudaErrorMemoryAllocation) throw out_of_memory(problem + DRAW_FEWER);
    throw failed(problem);
}

std::string dotted(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

std::string driver_problem() {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (!driver) return "no NVIDIA driver on this machine; use the backend onnxruntime";
    return "the NVIDIA driver knows CUDA " + dotted(driver) + ", this library needs " + dotted(runtime) +
           "; update the driver";
}

std::string device_problem(cudaError_t status) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    return "no CUDA GPU for this process: the driver (CUDA " + dotted(driver) + ") says \"" +
           cudaGetErrorString(status) +
           "\"; check nvidia-smi, CUDA_VISIBLE_DEVICES and, on a Jetson, that this user is in the groups video and "
           "render";
}

void require_gpu() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess && count) return;
    cudaGetLastError();
    throw unsupported(status == cudaErrorInsufficientDriver ? driver_problem() : device_problem(status));
}

// Returns what Linux would give to programs, in bytes; 0 if it does not say.
std::size_t available_memory() {
    std::ifstream file("/proc/meminfo");  // "MemAvailable:    1234 kB"
    for (std::string line; std::getline(file, line);) {
        unsigned long long kilobytes = 0;
        if (std::sscanf(line.c_str(), "MemAvailable: %llu", &kilobytes) == 1) return kilobytes * 1024;
    }
    return 0;
}

Gpu first_gpu() {
    require_gpu();
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    return {properties.name, std::to_string(properties.major) + "." + std::to_string(properties.minor),
            properties.totalGlobalMem, properties.integrated != 0};
}

}  // namespace

CurrentDevice::CurrentDevice() {
    if (cudaGetDevice(&before_) != cudaSuccess) cudaGetLastError();
    if (before_ != 0) cudaSetDevice(0);
}

CurrentDevice::~CurrentDevice() {
    if (before_ != 0) cudaSetDevice(before_);
}

Cuda::Cuda(void* stream) : gpu_(first_gpu()), stream_(static_cast<cudaStream_t>(stream)) {
    check(cudaSetDevice(0), "cudaSetDevice");
    // The legacy default stream cannot be recorded: a stream that keeps its order with that one can. Otherwise a stream
    // of its own keeps clear of it: while such a stream is recorded, what other threads queue there does no harm.
    const bool legacy = stream_ == cudaStreamLegacy;
    own_ = !stream_ || legacy;
    if (!own_) return;
    check(cudaStreamCreateWithFlags(&stream_, legacy ? cudaStreamDefault : cudaStreamNonBlocking),
          "cudaStreamCreateWithFlags");
}

Cuda::~Cuda() {
    if (own_) cudaStreamDestroy(stream_);
}

std::size_t Cuda::free_bytes() const {
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    // A GPU that shares the CPU's memory counts the cache of files as used, which an allocation gets all the same.
    return gpu_.integrated ? std::max(free, available_memory()) : free;
}

Error Cuda::memory_error(std::size_t size) const {
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    char text[200];
    std::snprintf(text, sizeof text, "GPU memory: %.0f MB are needed, %.0f of %.0f MB are free", double(size) / 1e6,
                  double(free) / 1e6, double(total) / 1e6);
    return out_of_memory(std::string(text) + DRAW_FEWER);
}

DeviceMemory Cuda::allocate(std::size_t size) const {
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, std::max<std::size_t>(size, 1));
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        throw memory_error(size);
    }
    check(status, "cudaMalloc");
    DeviceMemory owned(static_cast<std::uint8_t*>(memory));
    check(cudaMemsetAsync(memory, 0, size, stream_), "cudaMemsetAsync");
    return owned;
}

PinnedMemory Cuda::pinned(std::size_t size) const {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, std::max<std::size_t>(size, 1)), "cudaMallocHost");
    PinnedMemory owned(static_cast<std::uint8_t*>(memory));
    std::memset(memory, 0, size);
    return owned;
}

void Cuda::copy(void* target, const void* source, std::size_t size) const {
    check(cudaMemcpyAsync(target, source, size, cudaMemcpyDefault, stream_), "cudaMemcpyAsync");
}

void Cuda::copy_rows(void* target, std::size_t target_pitch, const void* source, std::size_t source_pitch,
                     std::size_t size, std::size_t rows) const {
    check(cudaMemcpy2DAsync(target, target_pitch, source, source_pitch, size, rows, cudaMemcpyDefault, stream_),
          "cudaMemcpy2DAsync");
}

void Cuda::synchronize() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

Graph Cuda::captured(const std::function<void()>& queue) const {
    // Thread-local: what other threads of the application do meanwhile is no part of the recording and does not spoil
    // it.
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
        queue();
    } catch (...) {
        cudaStreamEndCapture(stream_, &graph);  // or the stream stays useless
        if (graph) cudaGraphDestroy(graph);
        cudaGetLastError();
        throw;
    }
    check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    cudaGraphExec_t ready = nullptr;
    // cudaGraphInstantiate has other arguments from CUDA 12 on; this one has the same since 11.4.
    const cudaError_t status = cudaGraphInstantiateWithFlags(&ready, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "cudaGraphInstantiateWithFlags");
    return Graph(ready);
}

void Cuda::launch(const Graph& graph) const { check(cudaGraphLaunch(graph.get(), stream_), "cudaGraphLaunch"); }

DeviceArrays::~DeviceArrays() { cudaStreamSynchronize(cuda_->stream()); }

Array DeviceArrays::empty(Shape shape, Dtype dtype) {
    Array array{nullptr, std::move(shape), dtype, Place::device};
    memory_.push_back(cuda_->allocate(array.bytes()));
    array.data = memory_.back().get();
    return array;
}

Array DeviceArrays::constant(Shape shape, Dtype dtype, const void* values) {
    const Array array = empty(std::move(shape), dtype);
    upload(array.data, values, array.bytes());
    wait();  // the caller may free the values
    return array;
}

std::pair<std::uint8_t*, Array> DeviceArrays::shared(std::size_t size) {
    pinned_.push_back(cuda_->pinned(size));
    return {pinned_.back().get(), empty({std::int64_t(size)}, Dtype::uint8)};
}

void DeviceArrays::upload(std::uint8_t* target, const void* host, std::size_t size) { cuda_->copy(target, host, size); }

void DeviceArrays::fetch(void* target, const std::uint8_t* source, std::size_t size) {
    cuda_->copy(target, source, size);
}

void DeviceArrays::copy_columns(const Array& target, const Array& source) {
    const std::size_t to = target.row_bytes(), from = source.row_bytes();
    cuda_->copy_rows(target.data, to, source.data, from, std::min(to, from), std::size_t(source.shape[0]));
}

void DeviceArrays::wait() { cuda_->synchronize(); }

}  // namespace var_edge_impl
