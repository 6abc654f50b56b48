// How many CPUs this process may use: what a machine has says nothing in a container. Twin of runtime/processors.py.
#pragma once

#include <filesystem>

namespace var_edge_impl {

// The CPUs that the process may run on, or fewer if its control group (v1 or v2) has a smaller quota. At least 1.
int usable_cpus();

// CPU time per time that the process's control group and those above it leave; infinity if none has a quota. `root`
// holds the folders proc and sys.
double cpu_quota(const std::filesystem::path& root);

}  // namespace var_edge_impl
