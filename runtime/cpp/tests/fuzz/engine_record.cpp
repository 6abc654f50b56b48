// Any text as engine.json.
#include "bundle/engine_record.hpp"
#include "errors.hpp"

using namespace var_edge_impl;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        EngineRecord::parse({reinterpret_cast<const char*>(data), size}, "engine.json");
    } catch (const Error& error) {
        if (error.status != VAR_EDGE_BAD_BUNDLE) __builtin_trap();
    }
    return 0;
}
