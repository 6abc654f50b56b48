// The progress of loading, and a way to cancel it.
#pragma once

#include <cstdint>
#include <functional>

#include "var_edge.h"

namespace var_edge_impl {

// Throws Error STOPPED if the caller cancels.
using Progress = std::function<void(var_edge_stage stage, const char* name, std::uint64_t done, std::uint64_t total)>;

}  // namespace var_edge_impl
