// Class names. Twin of runtime/classes.py.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace var_edge_impl {

// The names of each label, the usual one first, from the bundle's text file: one class a line, synonyms separated by ", ".
// Empty if unknown. Throws Error BAD_BUNDLE.
std::vector<std::vector<std::string>> load_classes(const std::filesystem::path& bundle, const Manifest& manifest);

}  // namespace var_edge_impl
