#include "runtime/uniforms.hpp"

#include <array>
#include <cmath>

namespace var_edge_impl {

namespace {

using Words = std::array<std::uint64_t, 4>;

// The ten rounds of Philox4x64 on one counter.
Words philox(Words counter, std::uint64_t key0, std::uint64_t key1) {
    __extension__ using Wide = unsigned __int128;
    for (int round = 0; round < 10; ++round) {
        const Wide a = Wide(0xD2E7470EE14C6C93) * counter[0], b = Wide(0xCA5A826395121157) * counter[2];
        counter = {std::uint64_t(b >> 64) ^ counter[1] ^ key0, std::uint64_t(b),
                   std::uint64_t(a >> 64) ^ counter[3] ^ key1, std::uint64_t(a)};
        key0 += 0x9E3779B97F4A7C15;
        key1 += 0xBB67AE8584CAA73B;
    }
    return counter;
}

// `count` 24-bit numbers of the generator with this key.
template <typename Use>
void for_each_number(std::uint64_t key0, std::uint64_t key1, std::int64_t count, Use use) {
    for (std::uint64_t block = 1; count > 0; ++block) {  // numpy counts before it draws
        for (std::uint64_t word : philox({block, 0, 0, 0}, key0, key1)) {
            for (std::uint32_t half : {std::uint32_t(word), std::uint32_t(word >> 32)}) {
                if (count-- > 0) use(half >> 8);
            }
        }
    }
}

}  // namespace

std::vector<float> uniforms(std::uint64_t seed, std::int64_t count) {
    std::vector<float> values;
    values.reserve(std::size_t(count));
    for_each_number(seed, 0, count, [&](std::uint32_t number) { values.push_back(float(number) * 0x1p-24f); });
    return values;
}

std::vector<float> gumbel_noise(std::uint64_t seed, std::int64_t count) {
    std::vector<float> values;
    values.reserve(std::size_t(count));
    for_each_number(seed, 1, count, [&](std::uint32_t number) {
        values.push_back(float(-std::log(-std::log((double(number) + 0.5) * 0x1p-24))));
    });
    return values;
}

}  // namespace var_edge_impl
