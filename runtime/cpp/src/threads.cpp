#include "threads.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <sched.h>

namespace var_edge_impl {

namespace {

int allowed_processors() {
    for (int most = 1024; most <= 1 << 20; most *= 2) {  // a mask shorter than the kernel's is refused
        std::vector<cpu_set_t> mask(std::size_t(most) / CPU_SETSIZE);
        const std::size_t bytes = mask.size() * sizeof(cpu_set_t);
        if (sched_getaffinity(0, bytes, mask.data()) == 0) return CPU_COUNT_S(bytes, mask.data());
    }
    return int(std::thread::hardware_concurrency());
}

// Processors of a quota in microseconds of every period; infinite if there is none.
double processors(double quota, double period) { return quota > 0 && period > 0 ? std::ceil(quota / period) : HUGE_VAL; }

// Version 2: "max 100000" or "150000 100000" in one file.
double quota_v2(const std::string& folder) {
    double quota = 0, period = 0;
    std::ifstream(folder + "/cpu.max") >> quota >> period;  // "max" is no number
    return processors(quota, period);
}

double quota_v1(const std::string& folder) {
    double quota = 0, period = 0;
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;  // -1: none
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
    return processors(quota, period);
}

// The least of a control group and of those around it. In a container the path may be the host's, and only its end be there.
template <typename Quota>
double least(const std::string& root, std::string path, Quota quota) {
    double most = quota(root);
    for (; path.size() > 1; path.erase(path.rfind('/'))) most = std::min(most, quota(root + path));
    return most;
}

double allowed_by_quota() {
    double most = HUGE_VAL;
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // "0::/user.slice" or "4:cpu,cpuacct:/docker/…"
        const std::size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == line.npos) continue;
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",", path = line.substr(second + 1);
        if (controllers == ",,") most = std::min(most, least("/sys/fs/cgroup", path, quota_v2));
        if (controllers.find(",cpu,") != controllers.npos) most = std::min(most, least("/sys/fs/cgroup/cpu", path, quota_v1));
    }
    return most;
}

}  // namespace

int usable_processors() { return std::max(1, int(std::min(double(allowed_processors()), allowed_by_quota()))); }

}  // namespace var_edge_impl
