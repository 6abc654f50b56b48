#include "backends/ort.hpp"

#include <cstdio>
#include <cstdlib>

namespace var_edge_impl {

namespace {

// Without this variable ONNX Runtime creates a device identifier and an event database together with its environment.
// It is set while the library is loaded, before there are other threads that may read the environment. A value that the
// application has set is kept.
__attribute__((constructor(101))) void no_telemetry() { ::setenv("ORT_DISABLE_TELEMETRY", "1", 0); }

// The minor version that first reads these graphs and has every call made here.
constexpr int OLDEST = VAR_EDGE_ONNXRUNTIME_API;

}  // namespace

Ort::Env& environment() {
    static Ort::Env env = [] {
        const OrtApiBase* base = OrtGetApiBase();
        const char* version = base->GetVersionString();
        int major = 0, minor = 0;
        std::sscanf(version, "%d.%d", &major, &minor);
        // Asked for a version that it does not know, it prints an error.
        const bool known = major > 1 || (major == 1 && minor >= OLDEST);
        const OrtApi* api = known ? base->GetApi(OLDEST) : nullptr;
        if (!api) {
            throw unsupported(std::string("ONNX Runtime ") + version + ": expected 1." + std::to_string(OLDEST) +
                              " or later; install a newer one");
        }
        Ort::InitApi(api);
        if (!std::getenv("ORT_DISABLE_TELEMETRY")) no_telemetry();
        return Ort::Env(ORT_LOGGING_LEVEL_FATAL, "var_edge");  // errors come back as exceptions
    }();
    return env;
}

}  // namespace var_edge_impl
