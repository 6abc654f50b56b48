// A stand-in of the CUDA runtime for tests without a GPU. It runs work in the host's memory, and it refuses what
// hardware refuses: work waits until somebody synchronizes, fresh memory holds 0xAB, the host cannot read the GPU's
// memory (under AddressSanitizer), addresses must lie in live allocations, and a recording breaks where CUDA says so.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "standin.hpp"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

using standin::trace;
using standin::Work;

namespace {

struct Op {
    std::string name;
    Work work;
};

}  // namespace

struct CUstream_st {
    CUstream_st(bool ordered, int its) : blocking(ordered), device(its) {}

    bool blocking;  // keeps its order with the legacy stream
    int device;
    std::deque<Op> pending;
    bool capturing = false, spoiled = false;
    cudaStreamCaptureMode mode{};
    std::thread::id thread;  // that began the recording
    std::vector<Op> recorded;
};

struct CUgraph_st {
    std::vector<Op> ops;
};

struct CUgraphExec_st {
    std::vector<Op> ops;
};

namespace {

constexpr std::size_t ALIGNMENT = 256;
constexpr int FRESH = 0xAB;

struct Allocation {
    std::size_t size;
    bool pinned;
    int device;
};

struct Gpu {
    std::recursive_mutex mutex;
    std::map<std::uintptr_t, Allocation> memory;
    std::set<cudaStream_t> streams;
    int working = 0;  // the device that runs work now
    std::size_t used = 0, graphs = 0;
    cudaError_t broken = cudaSuccess;  // an error that no later call recovers from
};

Gpu& gpu() {
    static Gpu& one = *new Gpu;  // the application may free memory while the process ends
    return one;
}

using Lock = std::lock_guard<std::recursive_mutex>;

thread_local cudaError_t last = cudaSuccess;
thread_local int current = 0;

cudaError_t answer(cudaError_t error) {
    if (error != cudaSuccess) {
        last = error;
        trace(std::string("error: ") + cudaGetErrorString(error));
    }
    return error;
}

std::size_t number(const char* name, std::size_t otherwise) {
    return std::stoull(standin::variable(name, std::to_string(otherwise)));
}

std::size_t total() { return number("STANDIN_MEMORY", std::size_t(1) << 30); }

bool is_legacy(cudaStream_t stream) { return !stream || stream == cudaStreamLegacy; }

// The allocation that this address lies in or ends, or null.
const std::pair<const std::uintptr_t, Allocation>* allocation(const void* memory) {
    const auto& all = gpu().memory;
    auto next = all.upper_bound(std::uintptr_t(memory));
    if (next == all.begin()) return nullptr;
    --next;
    return std::uintptr_t(memory) <= next->first + next->second.size ? &*next : nullptr;
}

bool lies_in(const void* memory, std::size_t size) {
    const auto* found = allocation(memory);
    return found && std::uintptr_t(memory) + size <= found->first + found->second.size;
}

// While the GPU works, its memory can be read.
class Visible {
  public:
    Visible() {
        for (const auto& [start, one] : gpu().memory) ASAN_UNPOISON_MEMORY_REGION(as_pointer(start), one.size);
    }
    ~Visible() {
        for (const auto& [start, one] : gpu().memory) {
            if (!one.pinned) ASAN_POISON_MEMORY_REGION(as_pointer(start), one.size);
        }
    }
    static void* as_pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }
};

void run(cudaStream_t stream) {
    if (stream->pending.empty()) return;
    const Visible visible;
    gpu().working = stream->device;
    while (!stream->pending.empty()) {
        const Op op = std::move(stream->pending.front());
        stream->pending.pop_front();
        if (gpu().broken) continue;
        const std::string wrong = op.work();
        if (wrong.empty()) continue;
        std::fprintf(stderr, "stand-in GPU: %s: %s\n", op.name.c_str(), wrong.c_str());
        gpu().broken = cudaErrorIllegalAddress;
    }
}

// The legacy stream of a device waits for the blocking ones. Work that is ordered with a recording spoils it, whatever
// the thread.
cudaError_t join_legacy() {
    bool spoiled = false;
    for (cudaStream_t stream : gpu().streams) {
        if (!stream->blocking || !stream->capturing || stream->device != current) continue;
        stream->spoiled = spoiled = true;
    }
    if (spoiled) return cudaErrorStreamCaptureImplicit;
    for (cudaStream_t stream : gpu().streams) {
        if (stream->blocking && stream->device == current) run(stream);
    }
    return gpu().broken;
}

// Calls that a recording forbids: to its thread, or to all threads if it is global.
cudaError_t unsafe_call() {
    bool spoiled = false;
    for (cudaStream_t stream : gpu().streams) {
        if (!stream->capturing || stream->mode == cudaStreamCaptureModeRelaxed) continue;
        const bool ours = stream->thread == std::this_thread::get_id();
        if (!ours && stream->mode == cudaStreamCaptureModeThreadLocal) continue;
        stream->spoiled = spoiled = true;
    }
    return spoiled ? cudaErrorStreamCaptureUnsupported : gpu().broken;
}

cudaError_t allocate(void** memory, std::size_t size, bool pinned) {
    const Lock lock(gpu().mutex);
    trace((pinned ? "pinned " : "malloc ") + std::to_string(size));
    if (const cudaError_t error = unsafe_call()) return answer(error);
    if (!size) {
        *memory = nullptr;
        return cudaSuccess;
    }
    if (!pinned && size > total() - std::min(total(), gpu().used)) return answer(cudaErrorMemoryAllocation);
    if (posix_memalign(memory, ALIGNMENT, size)) return answer(cudaErrorMemoryAllocation);
    std::memset(*memory, FRESH, size);
    gpu().memory[std::uintptr_t(*memory)] = {size, pinned, current};
    if (pinned) return cudaSuccess;
    gpu().used += size;
    ASAN_POISON_MEMORY_REGION(*memory, size);
    return cudaSuccess;
}

cudaError_t release(void* memory, bool pinned) {
    const Lock lock(gpu().mutex);
    trace(pinned ? "free pinned" : "free");
    if (!memory) return cudaSuccess;
    if (const cudaError_t error = unsafe_call(); error && !gpu().broken) return answer(error);
    const auto found = gpu().memory.find(std::uintptr_t(memory));
    if (found == gpu().memory.end() || found->second.pinned != pinned) return answer(cudaErrorInvalidValue);
    ASAN_UNPOISON_MEMORY_REGION(memory, found->second.size);
    if (!pinned) gpu().used -= found->second.size;
    gpu().memory.erase(found);
    std::free(memory);
    return cudaSuccess;
}

// The kind that the addresses have, in the words of a trace.
std::string copy_name(bool from_device, bool to_device, std::size_t size) {
    const char* name = from_device == to_device ? "copy " : to_device ? "upload " : "download ";
    return name + std::to_string(size);
}

Work copying(void* target, const void* source, std::size_t size) {
    const bool known_target = allocation(target), known_source = allocation(source);
    return [=]() -> std::string {
        if (known_target && !lies_in(target, size)) return "the target was freed";
        if (known_source && !lies_in(source, size)) return "the source was freed";
        std::memcpy(target, source, size);
        return "";
    };
}

cudaError_t check_copy(void* target, const void* source, std::size_t size, cudaMemcpyKind kind) {
    for (const void* memory : {static_cast<const void*>(target), source}) {
        if (allocation(memory) && !lies_in(memory, size)) return cudaErrorInvalidValue;
    }
    const auto on_device = [](const void* memory) { return allocation(memory) && !allocation(memory)->second.pinned; };
    const bool from = on_device(source), to = on_device(target);
    if (kind == cudaMemcpyDefault) return cudaSuccess;
    const cudaMemcpyKind found = from ? (to ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost)
                                      : (to ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost);
    return kind == found ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

namespace standin {

std::string variable(const char* name, const std::string& otherwise) {
    const char* value = std::getenv(name);
    return value ? value : otherwise;
}

void trace(const std::string& line) {
    const std::string file = variable("STANDIN_TRACE", "");
    if (file.empty()) return;
    const Lock lock(gpu().mutex);
    std::ofstream(file, std::ios::app) << line << "\n";
}

cudaError_t queue(cudaStream_t stream, const std::string& name, Work work) {
    const Lock lock(gpu().mutex);
    if (gpu().broken) return answer(gpu().broken);
    if (is_legacy(stream)) {
        trace("legacy " + name);
        if (const cudaError_t error = join_legacy()) return answer(error);
        CUstream_st now(true, current);
        now.pending.push_back({name, std::move(work)});
        run(&now);
        return answer(gpu().broken);
    }
    if (!gpu().streams.count(stream)) return answer(cudaErrorInvalidResourceHandle);
    trace((stream->capturing ? "record " : "queue ") + name);
    if (!stream->capturing) stream->pending.push_back({name, std::move(work)});
    else if (stream->spoiled) return answer(cudaErrorStreamCaptureInvalidated);
    else stream->recorded.push_back({name, std::move(work)});
    return cudaSuccess;
}

cudaError_t queue_kernel(cudaStream_t stream, const std::string& name, Work work) {
    const Lock lock(gpu().mutex);
    const bool elsewhere = gpu().streams.count(stream) && stream->device != current;
    return elsewhere ? answer(cudaErrorInvalidResourceHandle) : queue(stream, name, std::move(work));
}

bool is_capturing(cudaStream_t stream) {
    const Lock lock(gpu().mutex);
    return gpu().streams.count(stream) && stream->capturing;
}

void spoil(cudaStream_t stream) {
    const Lock lock(gpu().mutex);
    if (is_capturing(stream)) stream->spoiled = true;
}

std::string trouble(const void* memory, std::size_t size) {
    const Lock lock(gpu().mutex);
    const auto* found = allocation(memory);
    if (!found) return "is no memory of the GPU, or was freed";
    if (!found->second.pinned && found->second.device != gpu().working) return "is memory of another device";
    return lies_in(memory, size) ? "" : std::to_string(size) + " bytes reach beyond their allocation";
}

}  // namespace standin

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorSystemDriverMismatch: return "system has unsupported display driver / cuda driver combination";
        case cudaErrorUnknown: return "unknown error";
        case cudaErrorInvalidResourceHandle: return "invalid resource handle";
        case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
        case cudaErrorStreamCaptureImplicit:
            return "operation would make the legacy stream depend on a capturing stream";
        case cudaErrorStreamCaptureWrongThread: return "attempt to terminate a capture from another thread";
    }
    return "unrecognized error code";
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
    const auto status = cudaError_t(number("STANDIN_NO_GPU", cudaSuccess));
    *count = status ? 0 : 2;  // the application's, and the one of the library
    return answer(status);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device < 0 || device > 1) return answer(cudaErrorInvalidDevice);
    *properties = {"Fake RTX", total(), 8, 6, int(number("STANDIN_INTEGRATED", 0))};
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (device < 0 || device > 1) return answer(cudaErrorInvalidDevice);
    if (attribute != cudaDevAttrIntegrated) return answer(cudaErrorInvalidValue);
    *value = int(number("STANDIN_INTEGRATED", 0));
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = current;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device > 1) return answer(cudaErrorInvalidDevice);
    current = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    const Lock lock(gpu().mutex);
    if (const cudaError_t error = unsafe_call()) return answer(error);
    for (cudaStream_t stream : gpu().streams) run(stream);
    return answer(gpu().broken);
}

cudaError_t cudaMalloc(void** memory, std::size_t size) { return allocate(memory, size, false); }
cudaError_t cudaFree(void* memory) { return release(memory, false); }
cudaError_t cudaMallocHost(void** memory, std::size_t size) { return allocate(memory, size, true); }
cudaError_t cudaFreeHost(void* memory) { return release(memory, true); }

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* all) {
    const Lock lock(gpu().mutex);
    *all = total();
    *free = *all - std::min(*all, gpu().used + number("STANDIN_TAKEN", 0));
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
    const Lock lock(gpu().mutex);
    const auto* found = allocation(memory);
    void* const address = const_cast<void*>(memory);
    if (!found) *attributes = {cudaMemoryTypeUnregistered, 0, nullptr, nullptr};
    else if (found->second.pinned) *attributes = {cudaMemoryTypeHost, 0, address, address};
    else *attributes = {cudaMemoryTypeDevice, 0, address, nullptr};
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* target, const void* source, std::size_t size, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(target, source, size, kind, nullptr);
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    const Lock lock(gpu().mutex);
    if (const cudaError_t error = check_copy(target, source, size, kind)) return answer(error);
    if (standin::is_capturing(stream) && !(allocation(target) && allocation(source))) {
        stream->spoiled = true;  // pageable memory of the host
        return answer(cudaErrorStreamCaptureUnsupported);
    }
    const auto on_device = [](const void* memory) { return allocation(memory) && !allocation(memory)->second.pinned; };
    return standin::queue(stream, copy_name(on_device(source), on_device(target), size), copying(target, source, size));
}

// Within the memory of one device only, as the library uses it.
cudaError_t cudaMemcpy2DAsync(void* target, std::size_t target_pitch, const void* source, std::size_t source_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    const Lock lock(gpu().mutex);
    if (!height || width > target_pitch || width > source_pitch) return answer(cudaErrorInvalidValue);
    const std::size_t to = (height - 1) * target_pitch + width, from = (height - 1) * source_pitch + width;
    const auto on_device = [](const void* memory) { return allocation(memory) && !allocation(memory)->second.pinned; };
    const bool inside = lies_in(target, to) && lies_in(source, from) && on_device(target) && on_device(source);
    const bool known = kind == cudaMemcpyDefault || kind == cudaMemcpyDeviceToDevice;
    if (!inside || !known) return answer(cudaErrorInvalidValue);
    return standin::queue(stream, "copy " + std::to_string(height) + " rows", [=]() -> std::string {
        if (!lies_in(target, to) || !lies_in(source, from)) return "memory of the copy was freed";
        for (std::size_t row = 0; row < height; ++row) {
            std::memcpy(static_cast<char*>(target) + row * target_pitch,
                        static_cast<const char*>(source) + row * source_pitch, width);
        }
        return "";
    });
}

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t size, cudaStream_t stream) {
    const Lock lock(gpu().mutex);
    if (!lies_in(memory, size)) return answer(cudaErrorInvalidValue);
    return standin::queue(stream, "fill " + std::to_string(size), [=]() -> std::string {
        if (!lies_in(memory, size)) return "the memory was freed";
        std::memset(memory, value, size);
        return "";
    });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
    const Lock lock(gpu().mutex);
    *stream = new CUstream_st(flags != cudaStreamNonBlocking, current);
    gpu().streams.insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const Lock lock(gpu().mutex);
    if (!gpu().streams.erase(stream)) return answer(cudaErrorInvalidResourceHandle);
    run(stream);
    delete stream;
    return answer(gpu().broken);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const Lock lock(gpu().mutex);
    trace("synchronize");
    if (is_legacy(stream)) return answer(join_legacy());
    if (!gpu().streams.count(stream)) return answer(cudaErrorInvalidResourceHandle);
    if (stream->capturing) {
        stream->spoiled = true;
        return answer(cudaErrorStreamCaptureUnsupported);
    }
    run(stream);
    return answer(gpu().broken);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    const Lock lock(gpu().mutex);
    trace("begin capture");
    if (is_legacy(stream)) return answer(cudaErrorStreamCaptureUnsupported);
    if (!gpu().streams.count(stream) || stream->capturing) return answer(cudaErrorInvalidResourceHandle);
    stream->capturing = true;
    stream->spoiled = false;
    stream->mode = mode;
    stream->thread = std::this_thread::get_id();
    stream->recorded.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    const Lock lock(gpu().mutex);
    trace("end capture");
    *graph = nullptr;
    if (!gpu().streams.count(stream) || !stream->capturing) return answer(cudaErrorInvalidValue);
    if (stream->mode != cudaStreamCaptureModeRelaxed && stream->thread != std::this_thread::get_id()) {
        return answer(cudaErrorStreamCaptureWrongThread);
    }
    stream->capturing = false;
    if (stream->spoiled) return answer(cudaErrorStreamCaptureInvalidated);
    *graph = new CUgraph_st{std::move(stream->recorded)};
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
    const Lock lock(gpu().mutex);
    if (const cudaError_t error = unsafe_call()) return answer(error);
    if (gpu().graphs == number("STANDIN_GRAPHS", SIZE_MAX)) return answer(cudaErrorMemoryAllocation);
    ++gpu().graphs;
    *ready = new CUgraphExec_st{graph->ops};
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
    const Lock lock(gpu().mutex);
    if (gpu().broken) return answer(gpu().broken);
    if (!gpu().streams.count(stream) || stream->capturing) return answer(cudaErrorInvalidResourceHandle);
    std::string names;
    for (const Op& op : ready->ops) {
        names += (names.empty() ? "" : "; ") + op.name;
        stream->pending.push_back(op);
    }
    trace("launch: " + names);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
    const Lock lock(gpu().mutex);
    --gpu().graphs;
    delete ready;
    return cudaSuccess;
}

}  // extern "C"
