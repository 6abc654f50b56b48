// processors ROOT: CPUs that the control groups under ROOT leave of 64.
#include <algorithm>
#include <cmath>
#include <iostream>

#include "runtime/processors.hpp"

int main(int count, char** arguments) {
    if (count != 2) return 2;
    std::cout << std::min(64.0, std::ceil(var_edge_impl::cpu_quota(arguments[1])));
}
