// How many threads to compute with. Twin of runtime/threads.py.
#pragma once

namespace var_edge_impl {

// The processors this process may use: those it may run on, and no more than its control group's quota allows. At least 1.
int usable_processors();

}  // namespace var_edge_impl
