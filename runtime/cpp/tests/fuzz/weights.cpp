// Any text as the header of a safetensors file of up to 1,000 bytes.
#include "bundle/weight_file.hpp"
#include "errors.hpp"

using namespace var_edge_impl;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        for (const auto& [_, tensor] :
             parse_weight_header({reinterpret_cast<const char*>(data), size}, 1000, "weights")) {
            if (tensor.begin < 0 || tensor.end < tensor.begin || tensor.end > 1000) __builtin_trap();
        }
    } catch (const Error& error) {
        if (error.status != VAR_EDGE_BAD_BUNDLE) __builtin_trap();
    }
    return 0;
}
