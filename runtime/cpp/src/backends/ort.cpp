#include "backends/ort.hpp"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "errors.hpp"

namespace var_edge_impl {

namespace {

// ONNX Runtime makes a device's identifier and a database of events when its environment is created, unless this is
// set. It is set while the library is loaded, when there is one thread still: setting it beside threads that read the
// environment is not safe. A value of the application's stays.
__attribute__((constructor(101))) void no_telemetry() { ::setenv("ORT_DISABLE_TELEMETRY", "1", 0); }

constexpr int OLDEST =
    VAR_EDGE_ONNXRUNTIME_API;  // the minor version that first reads these graphs and has every call made here

}  // namespace

Ort::Env& environment() {
    static Ort::Env env = [] {
        const OrtApiBase* base = OrtGetApiBase();
        const char* version = base->GetVersionString();
        int major = 0, minor = 0;
        std::sscanf(version, "%d.%d", &major, &minor);
        const bool known = major > 1 || (major == 1 && minor >= OLDEST);  // asked for an unknown one it prints
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
