#include "estimate.hpp"

#include <set>

#include "backend.hpp"
#include "wiring.hpp"

namespace var_edge_impl {

namespace {

// Counts what it is asked for, and takes none of it.
class CountedArrays final : public Arrays {
  public:
    Array zeros(Shape shape, Dtype dtype) override {
        const Array array{NOWHERE, std::move(shape), dtype};
        bytes += array.bytes();
        return array;
    }
    std::pair<std::uint8_t*, std::uint8_t*> staged(std::size_t size) override {
        bytes += size;
        return {NOWHERE, NOWHERE};
    }
    void upload(std::uint8_t*, const void*, std::size_t) override {}
    void download(void*, const Array&) override {}
    void clear(const Array&) override {}

    std::uint64_t bytes = 0;

  private:
    std::uint8_t* const NOWHERE = reinterpret_cast<std::uint8_t*>(ALIGNMENT);  // an address that nothing is read from
};

}  // namespace

MemoryUse memory_use(const Manifest& manifest, std::int64_t batch, bool smooth) {
    if (smooth) check_smooth(manifest);
    CountedArrays arrays;
    const Wiring wiring(batch, smooth, manifest, std::vector<ScaleConstants>(manifest.scales.size()), arrays);
    std::set<std::string> files = {WEIGHTS, manifest.graphs.at(smooth ? SMOOTH_BRIDGE : "bridge").file};
    for (const char* graph : {"condition", "transformer", "decoder"}) files.insert(manifest.graphs.at(graph).file);
    std::uint64_t weights = 0;
    for (const std::string& file : files) weights += std::uint64_t(manifest.files.at(file).size);
    const std::int64_t numbers = batch * manifest.model.tokens() * (smooth ? manifest.model.vocab_size : 1);
    return {weights, arrays.bytes, std::uint64_t(numbers) * sizeof(float)};
}

}  // namespace var_edge_impl
