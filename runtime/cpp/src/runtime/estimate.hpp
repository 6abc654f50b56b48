// Computes the memory that a model will take, before any is allocated.
#pragma once

#include "bundle/manifest.hpp"

namespace var_edge_impl {

struct MemoryUse {
    std::uint64_t weights, batch, noise;  // bytes, as in var_edge_memory_use
};

MemoryUse memory_use(const Manifest& manifest, std::int64_t batch, bool smooth);

}  // namespace var_edge_impl
