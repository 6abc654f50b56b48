// Labels by what a user types. Twin of ClassNames in runtime/classes.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace var_edge_impl {

using ClassNames = std::vector<std::vector<std::string>>;  // of each label, the usual one first; empty if unknown

// The label for a number, a name, all names of a class separated by ", ", a line of --list-classes, or the beginning of a
// name that fits one class only; "none" is `num_classes`. Upper and lower case are the same. Throws Error BAD_ARGUMENT,
// with what may be meant.
std::int64_t find_label(const std::string& text, const ClassNames& names, std::int64_t num_classes);

}  // namespace var_edge_impl
