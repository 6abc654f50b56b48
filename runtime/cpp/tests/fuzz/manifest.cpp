// Any text as a manifest: parsed or refused with Error BAD_BUNDLE, nothing else.
#include "bundle/manifest.hpp"
#include "errors.hpp"

using namespace var_edge_impl;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const Manifest manifest = Manifest::parse({reinterpret_cast<const char*>(data), size}, "manifest.json");
        for (const auto& [name, _] : manifest.files) {
            if (name.find('/') != std::string::npos || name == "..") __builtin_trap();  // leads out of the bundle
        }
        if (manifest.model.tokens() < 1 || manifest.runtime_tensors().empty()) __builtin_trap();
    } catch (const Error& error) {
        if (error.status != VAR_EDGE_BAD_BUNDLE) __builtin_trap();
    }
    return 0;
}
