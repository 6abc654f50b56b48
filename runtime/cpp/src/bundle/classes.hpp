// Class names: what a user types instead of a label. Twin of runtime/bundle/classes.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "bundle/manifest.hpp"

namespace var_edge_impl {

using ClassNames = std::vector<std::vector<std::string>>;  // of each label, the usual one first; empty if unknown

// Reads the bundle's text file: one class a line, synonyms separated by ", ". Throws Error BAD_BUNDLE.
ClassNames load_classes(const std::filesystem::path& bundle, const Manifest& manifest);

// Returns the label for a number, a name, all names of a class separated by ", ", a line of --list-classes, or the
// beginning of a name that fits one class only; "none" is `num_classes`. Upper and lower case are the same. Throws
// Error BAD_ARGUMENT; the message lists candidates.
std::int64_t find_label(const std::string& text, const ClassNames& names, std::int64_t num_classes);

}  // namespace var_edge_impl
