// How many CPUs this process may use: in a container, fewer than the machine has. Twin of runtime/processors.py.
#pragma once

#include <filesystem>

namespace var_edge_impl {

// Returns the number of CPUs that the process may run on, or less if its control group (v1 or v2) has a smaller quota.
// At least 1.
int usable_cpus();

// Returns the number of CPUs that the quotas of the process's control group and of those above it allow; infinity if
// there is no quota. `root` holds the folders proc and sys.
double cpu_quota(const std::filesystem::path& root);

}  // namespace var_edge_impl
