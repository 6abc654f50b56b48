// A libonnxruntime.so.1 with a CUDA execution provider, for machines without a GPU. The real library, which
// FAKE_CUDA_REAL names, does the work on the CPU.
//
// It refuses what a GPU refuses. Memory of the device can be accessed only while a session runs: elsewhere a read ends
// the process. It is not set to 0 but to NaN. An input in the host's memory is copied after it was bound, for certain
// only when somebody waits for that, and not when the session runs. A tensor must say rightly where it lies. What was
// asked for is written to the file FAKE_CUDA_LOG. FAKE_CUDA_BYTES is the size of the memory. FAKE_CUDA says what is
// missing: "cudnn", or what creating a session fails with. FAKE_CUDA_ALLOCATION is what an allocation fails with.
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

const OrtApi* real = nullptr;
OrtApi patched;
std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

std::string setting(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

void note(const std::string& line) {
    if (std::FILE* file = std::fopen(setting("FAKE_CUDA_LOG").c_str(), "a")) {
        std::fputs((line + "\n").c_str(), file);
        std::fclose(file);
    }
}

[[noreturn]] void refuse(const std::string& why) {
    std::fprintf(stderr, "fake CUDA provider: %s\n", why.c_str());
    std::abort();
}

// The memory of the device. Addresses are not used again, so that what was freed cannot be accessed either.
class Device {
  public:
    std::uint8_t* allocate(std::size_t size) {
        const std::string limit = setting("FAKE_CUDA_BYTES");
        if (!limit.empty() && used_ + size > std::stoull(limit)) return nullptr;
        const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE)), pages = size / page * page + page;
        if (end_ + pages > SIZE) refuse("more memory than the test has");
        std::uint8_t* memory = base() + end_;
        end_ += pages;
        used_ += size;
        live_[memory] = {size, pages};
        mprotect(memory, pages, PROT_READ | PROT_WRITE);
        std::memset(memory, 0xFF, pages);
        if (!running_) mprotect(memory, pages, PROT_NONE);
        return memory;
    }
    void free(void* memory) {
        const auto found = live_.find(static_cast<std::uint8_t*>(memory));
        if (found == live_.end()) refuse("frees what is not allocated");
        mprotect(found->first, found->second.pages, PROT_NONE);
        used_ -= found->second.size;
        live_.erase(found);
    }
    bool holds(const void* memory) {
        const auto* byte = static_cast<const std::uint8_t*>(memory);
        return byte >= base() && byte < base() + SIZE;
    }
    void enter() {
        if (!running_++) protect(PROT_READ | PROT_WRITE);
    }
    void leave() {
        if (!--running_) protect(PROT_NONE);
    }

  private:
    static constexpr std::size_t SIZE = std::size_t(8) << 30;  // of addresses
    struct Block {
        std::size_t size, pages;  // bytes
    };

    std::uint8_t* base() {
        if (!base_) {
            void* memory = mmap(nullptr, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory == MAP_FAILED) refuse("no addresses for the device");
            base_ = static_cast<std::uint8_t*>(memory);
        }
        return base_;
    }
    void protect(int how) {
        for (const auto& [memory, block] : live_) mprotect(memory, block.pages, how);
    }

    std::uint8_t* base_ = nullptr;
    std::size_t end_ = 0, used_ = 0;
    std::map<std::uint8_t*, Block> live_;
    int running_ = 0;
};

Device device;

struct Data {
    void* memory;
    std::size_t size;
    std::vector<std::int64_t> shape;
    ONNXTensorElementDataType type;
};
struct Copy {
    std::uint8_t* memory;
    OrtValue* value;
    Data source;
    bool queued;
};

std::set<const void*> gpu_options, gpu_sessions, device_infos;  // of session options, sessions, memory infos
std::map<const OrtValue*, Data> values;
std::map<const OrtIoBinding*, const OrtSession*> bindings;
std::map<const OrtIoBinding*, std::map<std::string, Copy>> copies;  // of inputs in the host's memory
const OrtMemoryInfo* cpu = nullptr;

OrtStatus* failure(const char* message) { return real->CreateStatus(ORT_FAIL, message); }

OrtStatus* ORT_API_CALL available(char*** out, int* count) noexcept {
    char** names = nullptr;
    if (OrtStatus* status = real->GetAvailableProviders(&names, count)) return status;
    *out = new char*[std::size_t(*count) + 1];
    for (int i = 0; i < *count; ++i) (*out)[i] = strdup(names[i]);
    (*out)[*count] = strdup("CUDAExecutionProvider");
    if (OrtStatus* status = real->ReleaseAvailableProviders(names, *count)) return status;
    ++*count;
    return nullptr;
}

OrtStatus* ORT_API_CALL release_available(char** names, int count) noexcept {
    for (int i = 0; i < count; ++i) std::free(names[i]);
    delete[] names;
    return nullptr;
}

using Options = std::map<std::string, std::string>;

OrtStatus* ORT_API_CALL create_options(OrtCUDAProviderOptionsV2** out) noexcept {
    *out = reinterpret_cast<OrtCUDAProviderOptionsV2*>(new Options);
    return nullptr;
}

OrtStatus* ORT_API_CALL update_options(OrtCUDAProviderOptionsV2* options, const char* const* keys,
                                       const char* const* texts, std::size_t count) noexcept {
    const std::set<std::string> known = {"arena_extend_strategy", "device_id", "gpu_mem_limit", "use_tf32",
                                         "user_compute_stream"};
    for (std::size_t i = 0; i < count; ++i) {
        if (!known.count(keys[i])) return failure("Unknown provider option");
        (*reinterpret_cast<Options*>(options))[keys[i]] = texts[i];
    }
    return nullptr;
}

OrtStatus* ORT_API_CALL update_pointer(OrtCUDAProviderOptionsV2* options, const char* key, void*) noexcept {
    (*reinterpret_cast<Options*>(options))[key] = "a pointer";
    return nullptr;
}

void ORT_API_CALL release_options(OrtCUDAProviderOptionsV2* options) noexcept {
    delete reinterpret_cast<Options*>(options);
}

OrtStatus* ORT_API_CALL append(OrtSessionOptions* session, const OrtCUDAProviderOptionsV2* options) noexcept {
    if (setting("FAKE_CUDA") == "cudnn") {
        return failure("Failed to load library libonnxruntime_providers_cuda.so with error: libcudnn.so.9: cannot open"
                       " shared object file: No such file or directory");
    }
    const Lock lock(mutex);
    gpu_options.insert(session);
    for (const auto& [key, value] : *reinterpret_cast<const Options*>(options)) note("option " + key + "=" + value);
    return nullptr;
}

OrtStatus* ORT_API_CALL create_session(const OrtEnv* env, const char* path, const OrtSessionOptions* options,
                                       OrtSession** out) noexcept {
    const Lock lock(mutex);
    const bool gpu = gpu_options.count(options) != 0;
    if (const std::string problem = setting("FAKE_CUDA"); gpu && !problem.empty()) return failure(problem.c_str());
    OrtStatus* status = real->CreateSession(env, path, options, out);
    if (!status && gpu) gpu_sessions.insert(*out);
    return status;
}

OrtStatus* ORT_API_CALL create_session_of(const OrtEnv* env, const void* data, std::size_t size,
                                          const OrtSessionOptions* options, OrtSession** out) noexcept {
    const Lock lock(mutex);
    OrtStatus* status = real->CreateSessionFromArray(env, data, size, options, out);
    if (!status && gpu_options.count(options)) gpu_sessions.insert(*out);
    return status;
}

void ORT_API_CALL release_session_options(OrtSessionOptions* options) noexcept {
    const Lock lock(mutex);
    gpu_options.erase(options);
    real->ReleaseSessionOptions(options);
}

void ORT_API_CALL release_session(OrtSession* session) noexcept {
    const Lock lock(mutex);
    gpu_sessions.erase(session);
    real->ReleaseSession(session);
}

OrtStatus* ORT_API_CALL create_info(const char* name, OrtAllocatorType type, int id, OrtMemType memory,
                                    OrtMemoryInfo** out) noexcept {
    const bool ours = std::string(name) == "Cuda";
    OrtStatus* status = real->CreateMemoryInfo(ours ? "Cpu" : name, type, ours ? 0 : id, memory, out);
    const Lock lock(mutex);
    if (!status && ours) {
        device_infos.insert(*out);
        note("memory of GPU " + std::to_string(id));
    }
    return status;
}

void ORT_API_CALL release_info(OrtMemoryInfo* info) noexcept {
    const Lock lock(mutex);
    device_infos.erase(info);
    real->ReleaseMemoryInfo(info);
}

void* ORT_API_CALL no_alloc(OrtAllocator*, std::size_t) { refuse("asks the allocator itself"); }
void ORT_API_CALL no_free(OrtAllocator*, void*) { refuse("asks the allocator itself"); }
const OrtMemoryInfo* ORT_API_CALL no_info(const OrtAllocator*) { refuse("asks the allocator itself"); }

OrtAllocator allocator;

OrtStatus* ORT_API_CALL create_allocator(const OrtSession* session, const OrtMemoryInfo* info,
                                         OrtAllocator** out) noexcept {
    const Lock lock(mutex);
    if (!device_infos.count(info)) return real->CreateAllocator(session, info, out);
    if (!gpu_sessions.count(session)) return failure("No requested allocator available");
    *out = &allocator;
    return nullptr;
}

void ORT_API_CALL release_allocator(OrtAllocator* released) noexcept {
    if (released != &allocator) real->ReleaseAllocator(released);
}

OrtStatus* ORT_API_CALL allocate(OrtAllocator* of, std::size_t size, void** out) noexcept {
    if (of != &allocator) return real->AllocatorAlloc(of, size, out);
    if (const std::string problem = setting("FAKE_CUDA_ALLOCATION"); !problem.empty()) return failure(problem.c_str());
    const Lock lock(mutex);
    *out = device.allocate(size);
    if (!*out) return failure("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer");
    note("allocate " + std::to_string(size));
    return nullptr;
}

OrtStatus* ORT_API_CALL free_memory(OrtAllocator* of, void* memory) noexcept {
    if (of != &allocator) return real->AllocatorFree(of, memory);
    const Lock lock(mutex);
    device.free(memory);
    return nullptr;
}

OrtStatus* ORT_API_CALL create_tensor(const OrtMemoryInfo* info, void* memory, std::size_t size,
                                      const std::int64_t* shape, std::size_t rank, ONNXTensorElementDataType type,
                                      OrtValue** out) noexcept {
    const Lock lock(mutex);
    if (device.holds(memory) != (device_infos.count(info) != 0)) refuse("a tensor lies elsewhere than it says");
    OrtStatus* status = real->CreateTensorWithDataAsOrtValue(info, memory, size, shape, rank, type, out);
    if (!status) values[*out] = {memory, size, {shape, shape + rank}, type};
    return status;
}

void ORT_API_CALL release_value(OrtValue* value) noexcept {
    const Lock lock(mutex);
    values.erase(value);
    real->ReleaseValue(value);
}

OrtStatus* ORT_API_CALL create_binding(OrtSession* session, OrtIoBinding** out) noexcept {
    const Lock lock(mutex);
    OrtStatus* status = real->CreateIoBinding(session, out);
    if (!status) bindings[*out] = session;
    return status;
}

void release(const Copy& copy) {
    real->ReleaseValue(copy.value);
    device.free(copy.memory);
}

void ORT_API_CALL release_binding(OrtIoBinding* binding) noexcept {
    const Lock lock(mutex);
    real->ReleaseIoBinding(binding);
    for (const auto& [_, copy] : copies[binding]) release(copy);
    copies.erase(binding);
    bindings.erase(binding);
}

OrtStatus* ORT_API_CALL bind_input(OrtIoBinding* binding, const char* name, const OrtValue* value) noexcept {
    const Lock lock(mutex);
    const Data& data = values.at(value);
    if (!gpu_sessions.count(bindings.at(binding)) || device.holds(data.memory)) {
        return real->BindInput(binding, name, value);
    }
    note(std::string("copy ") + name);
    Copy copy{device.allocate(data.size), nullptr, data, true};
    if (!copy.memory) return failure("CUDA failure 2: out of memory ; GPU=0");
    OrtStatus* status = real->CreateTensorWithDataAsOrtValue(cpu, copy.memory, data.size, data.shape.data(),
                                                             data.shape.size(), data.type, &copy.value);
    if (!status) status = real->BindInput(binding, name, copy.value);
    auto& held = copies[binding];
    if (const auto before = held.find(name); before != held.end()) release(before->second);
    held[name] = copy;
    return status;
}

OrtStatus* ORT_API_CALL synchronize(OrtIoBinding* binding) noexcept {
    const Lock lock(mutex);
    device.enter();
    for (auto& [_, copy] : copies[binding]) {
        if (copy.queued && copy.source.size) std::memcpy(copy.memory, copy.source.memory, copy.source.size);
        copy.queued = false;
    }
    device.leave();
    return nullptr;
}

OrtStatus* ORT_API_CALL run(OrtSession* session, const OrtRunOptions* options, const OrtIoBinding* binding) noexcept {
    {
        const Lock lock(mutex);
        for (const auto& [name, copy] : copies[binding]) {
            if (copy.queued) refuse(name + ": the session may run before it was copied");
        }
        device.enter();
    }
    OrtStatus* status = real->RunWithBinding(session, options, binding);
    const Lock lock(mutex);
    device.leave();
    return status;
}

const OrtApiBase* real_base() {
    static const OrtApiBase* base = [] {
        void* library = dlopen(setting("FAKE_CUDA_REAL").c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library) refuse(dlerror());
        return reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))();
    }();
    return base;
}

const char* ORT_API_CALL version() noexcept { return real_base()->GetVersionString(); }

const OrtApi* ORT_API_CALL api(std::uint32_t wanted) noexcept {
    const Lock lock(mutex);
    if (real) return &patched;
    if (!real_base()->GetApi(wanted)) return nullptr;
    real = real_base()->GetApi(ORT_API_VERSION);
    OrtMemoryInfo* info = nullptr;
    if (real->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &info)) refuse("no memory info");
    cpu = info;
    allocator.version = ORT_API_VERSION;
    allocator.Alloc = no_alloc;
    allocator.Free = no_free;
    allocator.Info = no_info;
    patched = *real;
    patched.GetAvailableProviders = available;
    patched.ReleaseAvailableProviders = release_available;
    patched.CreateCUDAProviderOptions = create_options;
    patched.UpdateCUDAProviderOptions = update_options;
    patched.UpdateCUDAProviderOptionsWithValue = update_pointer;
    patched.ReleaseCUDAProviderOptions = release_options;
    patched.SessionOptionsAppendExecutionProvider_CUDA_V2 = append;
    patched.CreateSession = create_session;
    patched.CreateSessionFromArray = create_session_of;
    patched.ReleaseSessionOptions = release_session_options;
    patched.ReleaseSession = release_session;
    patched.CreateMemoryInfo = create_info;
    patched.ReleaseMemoryInfo = release_info;
    patched.CreateAllocator = create_allocator;
    patched.ReleaseAllocator = release_allocator;
    patched.AllocatorAlloc = allocate;
    patched.AllocatorFree = free_memory;
    patched.CreateTensorWithDataAsOrtValue = create_tensor;
    patched.ReleaseValue = release_value;
    patched.CreateIoBinding = create_binding;
    patched.ReleaseIoBinding = release_binding;
    patched.BindInput = bind_input;
    patched.SynchronizeBoundInputs = synchronize;
    patched.RunWithBinding = run;
    return &patched;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* ORT_API_CALL OrtGetApiBase() noexcept {
    static const OrtApiBase base = {api, version};
    return &base;
}
