// The random numbers of a picture: one uniform per token. Twin of runtime/uniforms.py.
#pragma once

#include <cstdint>
#include <vector>

namespace var_edge_impl {

// Returns `count` uniforms in [0, 1) of the picture `seed`: the uint32 words of Philox4x64-10 with key `seed` (Salmon
// et al., 2011), low word of each 64 bits first, shifted right by 8 and multiplied by 2**-24.
std::vector<float> uniforms(std::uint64_t seed, std::int64_t count);

// Returns Gumbel noise of the picture `seed` for smooth sampling: -log(-log(u)) in float64 of u = (w + 1/2) * 2**-24,
// of the 24-bit numbers w that `uniforms` is made of, but with the second word of the generator's key 1.
std::vector<float> gumbel_noise(std::uint64_t seed, std::int64_t count);

}  // namespace var_edge_impl
