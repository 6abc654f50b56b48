// How far loading is, and whether to go on.
#pragma once

#include <cstdint>
#include <functional>

#include "var_edge.h"

namespace var_edge_impl {

// Throws Error STOPPED if the caller wants no more.
using Progress = std::function<void(var_edge_stage stage, const char* name, std::uint64_t done, std::uint64_t total)>;

}  // namespace var_edge_impl
