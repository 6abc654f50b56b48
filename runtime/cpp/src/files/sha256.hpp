// SHA-256 (FIPS 180-4), with the processor's own instructions where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace var_edge_impl {

class Sha256 {
  public:
    void add(const std::uint8_t* data, std::size_t size);
    std::string hex();  // of all that was added; nothing may be added after

  private:
    std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                           0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<std::uint8_t, 64> block_{};
    std::size_t held_ = 0;     // bytes in block_
    std::uint64_t total_ = 0;  // bytes
};

}  // namespace var_edge_impl
