#include "runtime/processors.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <sched.h>

namespace var_edge_impl {

namespace fs = std::filesystem;

namespace {

int allowed_cpus() {
    for (int most = 1024; most <= 1 << 20; most *= 2) {  // a mask shorter than the kernel's is refused
        std::vector<cpu_set_t> mask(std::size_t(most) / CPU_SETSIZE);
        const std::size_t bytes = mask.size() * sizeof(cpu_set_t);
        if (sched_getaffinity(0, bytes, mask.data()) == 0) return CPU_COUNT_S(bytes, mask.data());
    }
    return int(std::thread::hardware_concurrency());
}

// Quota and period in microseconds: "150000 100000" in one file, or a file each in version 1; "max" or -1 means none.
double quota_of(const fs::path& group, bool version_1) {
    double quota = 0, period = 0;
    if (version_1) {
        std::ifstream(group / "cpu.cfs_quota_us") >> quota;
        std::ifstream(group / "cpu.cfs_period_us") >> period;
    } else {
        std::ifstream(group / "cpu.max") >> quota >> period;
    }
    return quota > 0 && period > 0 ? quota / period : HUGE_VAL;
}

// The least of a group and of those around it. A container may see its own group as the root of the mount.
double least_quota(const fs::path& mount, std::string path, bool version_1) {
    double least = quota_of(mount, version_1);
    for (; path.size() > 1; path.erase(path.rfind('/'))) {
        least = std::min(least, quota_of(mount / path.substr(1), version_1));
    }
    return least;
}

}  // namespace

double cpu_quota(const fs::path& root) {
    double least = HUGE_VAL;
    const fs::path mounts = root / "sys/fs/cgroup";
    std::ifstream groups(root / "proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // "4:cpu,cpuacct:/docker/7f", of version 2 "0::/docker/7f"
        const std::size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == line.npos || line.compare(second + 1, 1, "/") != 0) continue;
        const std::string number = line.substr(0, first), path = line.substr(second + 1);
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const bool version_2 = number == "0" && controllers.empty();
        if (!version_2 && ("," + controllers + ",").find(",cpu,") == line.npos) continue;
        for (const fs::path& mount :
             {version_2 ? mounts : mounts / controllers, mounts / (version_2 ? "unified" : "cpu")}) {
            least = std::min(least, least_quota(mount, path, !version_2));
        }
    }
    return least;
}

int usable_cpus() { return std::max(1, int(std::min(double(allowed_cpus()), std::ceil(cpu_quota("/"))))); }

}  // namespace var_edge_impl
