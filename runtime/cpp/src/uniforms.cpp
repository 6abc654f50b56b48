#include "uniforms.hpp"

#include <array>

namespace var_edge_impl {

namespace {

using Words = std::array<std::uint64_t, 4>;

// The ten rounds of Philox4x64 on one counter.
Words philox(Words counter, std::uint64_t key0, std::uint64_t key1) {
    __extension__ using Wide = unsigned __int128;
    for (int round = 0; round < 10; ++round) {
        const Wide a = Wide(0xD2E7470EE14C6C93) * counter[0], b = Wide(0xCA5A826395121157) * counter[2];
        counter = {std::uint64_t(b >> 64) ^ counter[1] ^ key0, std::uint64_t(b), std::uint64_t(a >> 64) ^ counter[3] ^ key1,
                   std::uint64_t(a)};
        key0 += 0x9E3779B97F4A7C15;
        key1 += 0xBB67AE8584CAA73B;
    }
    return counter;
}

}  // namespace

std::vector<float> uniforms(std::uint64_t seed, std::int64_t count) {
    std::vector<float> values;
    values.reserve(std::size_t(count) + 7);
    for (std::uint64_t block = 1; std::int64_t(values.size()) < count; ++block) {  // numpy counts before it draws
        for (std::uint64_t word : philox({block, 0, 0, 0}, seed, 0)) {
            for (std::uint32_t half : {std::uint32_t(word), std::uint32_t(word >> 32)}) {
                values.push_back(float(half >> 8) * 0x1p-24f);
            }
        }
    }
    values.resize(std::size_t(count));
    return values;
}

}  // namespace var_edge_impl
