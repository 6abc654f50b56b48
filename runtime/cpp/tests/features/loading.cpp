// Before the first picture: progress, memory, messages, execution providers, versions.
#include <functional>
#include <limits>

#include "features.hpp"

namespace {

struct Loading {
    std::uint64_t done[2] = {}, total[2] = {};
    int calls = 0, stop_after = std::numeric_limits<int>::max();
};

void progress(const std::string& directory) {
    Loading loading;
    var_edge::Options options;
    options.on_progress = [](const var_edge_progress* progress, void* user) {
        auto& self = *static_cast<Loading*>(user);
        expect(progress->done >= self.done[progress->stage] && progress->done <= progress->total && *progress->name,
               "progress");
        self.done[progress->stage] = progress->done;
        self.total[progress->stage] = progress->total;
        return int(++self.calls > self.stop_after);
    };
    options.progress_user = &loading;
    Model model(directory, options);
    for (const int stage : {VAR_EDGE_CHECKING, VAR_EDGE_LOADING}) {
        expect(loading.total[stage] > 0 && loading.done[stage] == loading.total[stage], "all of it");
    }
    const int calls = loading.calls;
    for (const int after : {0, calls - 1}) {
        loading = Loading();
        loading.stop_after = after;
        var_edge_model* other = model.get();
        refused("stop", var_edge_create(directory.c_str(), &options, &other), VAR_EDGE_STOPPED,
                "stopped by on_progress");
        expect(!other, "a handle of a stopped create");
    }
    loading = Loading();
    options.verify = 0;
    Model unverified(directory, options);
    expect(loading.total[VAR_EDGE_CHECKING] == 0 && loading.done[VAR_EDGE_LOADING] > 0, "without verifying");
}

void memory(const std::string& directory) {
    const auto use = [&](std::int32_t batch) {
        var_edge_memory_use found{};
        found.struct_size = sizeof found;
        expect(var_edge_memory(directory.c_str(), batch, 0, &found) == VAR_EDGE_OK, "memory");
        return found;
    };
    const var_edge_memory_use one = use(1), eight = use(8), large = use(1024);
    expect(one.weights > 0 && one.weights == large.weights, "weights");
    expect(one.batch > 0 && eight.batch > one.batch && eight.batch <= 8 * one.batch, "a batch");
    expect(large.batch > 100 * eight.batch && large.batch < 128 * eight.batch + 1, "a large batch");
    Model model(directory, one_thread());
    expect(one.noise == std::uint64_t(model.info().tokens) * 4, "random numbers");
    var_edge_memory_use found{};
    found.struct_size = sizeof found;
    refused("batch", var_edge_memory(directory.c_str(), 0, 0, &found), VAR_EDGE_BAD_ARGUMENT,
            "batch: expected 1 to 1024");
    refused("smooth", var_edge_memory(directory.c_str(), 1, 1, &found), VAR_EDGE_BAD_BUNDLE, "smooth");
}

struct Heard {
    std::atomic<int> engine{0}, library{0};
};

void log(const std::string& directory) {
    for (const int level : {int(VAR_EDGE_LOG_VERBOSE), int(VAR_EDGE_LOG_NONE)}) {
        Heard heard;
        var_edge::Options options;
        options.log_level = level;
        options.log_user = &heard;
        options.log = [](int of, const char* message, void* user) {
            auto& self = *static_cast<Heard*>(user);
            const bool engine = std::strncmp(message, "ONNX Runtime: ", 14) == 0;
            expect(!std::strchr(message, '\n') && of >= VAR_EDGE_LOG_VERBOSE && of <= VAR_EDGE_LOG_ERROR, message);
            (engine ? self.engine : self.library) += 1;
        };
        Model model(directory, options);
        model.generate({1});
        expect(heard.library > 0 && (heard.engine > 0) == (level == VAR_EDGE_LOG_VERBOSE),
               "messages: " + std::to_string(heard.engine));
    }
}

void provider(const std::string& directory) {
    const auto wrong = [&](const std::string& says, var_edge_status status,
                           const std::function<void(var_edge::Options&)>& set) {
        var_edge::Options options;
        set(options);
        var_edge_model* model = nullptr;
        refused(says, var_edge_create(directory.c_str(), &options, &model), status, says);
    };
    static const char* pair[] = {"gpu_mem_limit", "1000", nullptr};
    static const char* half[] = {"gpu_mem_limit", nullptr};
    wrong("no execution provider", VAR_EDGE_BAD_ARGUMENT, [](var_edge::Options& o) { o.provider_options = pair; });
    wrong("expected a value after \"gpu_mem_limit\"", VAR_EDGE_BAD_ARGUMENT, [](var_edge::Options& o) {
        o.provider_options = half;
        o.backend = VAR_EDGE_ONNXRUNTIME_CUDA;
    });
    wrong("CUDAExecutionProvider", VAR_EDGE_UNSUPPORTED, [](var_edge::Options& o) {
        o.provider_options = pair;
        o.backend = VAR_EDGE_ONNXRUNTIME_CUDA;
        o.device = 1;
    });
    wrong("device: expected", VAR_EDGE_BAD_ARGUMENT, [](var_edge::Options& o) { o.device = -2; });
    wrong("log_level: expected", VAR_EDGE_BAD_ARGUMENT, [](var_edge::Options& o) { o.log_level = 4; });
}

void version(const std::string&) {
    const std::string found = var_edge_version();
    const std::string header = std::to_string(VAR_EDGE_VERSION_MAJOR) + "." + std::to_string(VAR_EDGE_VERSION_MINOR) +
                               "." + std::to_string(VAR_EDGE_VERSION_PATCH);
    expect(found == header, found + " beside " + header);
    expect(std::strstr(var_edge_build(), found.c_str()) && std::strstr(var_edge_build(), "commit "), "build");
    for (int status = 0; status <= 6; ++status) {
        expect(std::strcmp(var_edge_status_string(var_edge_status(status)), "unknown status"), "a status");
    }
    expect(!std::strcmp(var_edge_status_string(VAR_EDGE_STOPPED), "stopped"), "stopped");
    expect(!std::strcmp(var_edge_status_string(static_cast<var_edge_status>(7)), "unknown status"), "no status");
}

}  // namespace

const Features LOADING = {
    {"progress", progress}, {"memory", memory}, {"log", log}, {"provider", provider}, {"version", version}};
