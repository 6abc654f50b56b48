#include "runtime/estimate.hpp"

#include <set>

#include "backends/wired.hpp"

namespace var_edge_impl {

MemoryUse memory_use(const Manifest& manifest, std::int64_t batch, bool smooth) {
    if (smooth) check_smooth(manifest);
    NoArrays arrays;
    const std::size_t scales = manifest.scales.size();
    const Wiring wiring({batch, smooth, scales}, manifest, std::vector<ScaleConstants>(scales), arrays);
    std::set<std::string> files = {WEIGHTS};
    if (smooth) files.insert(manifest.graphs.at(SMOOTH_BRIDGE).file);
    for (const std::string& graph : drawing_graphs(manifest)) {
        if (graph != "bridge" || !smooth) files.insert(manifest.graphs.at(graph).file);
    }
    std::uint64_t weights = 0;
    for (const std::string& file : files) weights += std::uint64_t(manifest.files.at(file).size);
    const std::int64_t numbers = batch * manifest.model.tokens() * (smooth ? manifest.model.vocab_size : 1);
    return {weights, arrays.bytes, std::uint64_t(numbers) * sizeof(float)};
}

}  // namespace var_edge_impl
