#include "classes.hpp"

#include <algorithm>

#include "bounded.hpp"
#include "error.hpp"
#include "limits.hpp"

namespace var_edge_impl {

namespace {

std::vector<std::string> split(const std::string& text, const std::string& separator) {
    std::vector<std::string> parts;
    std::size_t start = 0;
    for (std::size_t end; (end = text.find(separator, start)) != text.npos; start = end + separator.size()) {
        parts.push_back(text.substr(start, end - start));
    }
    parts.push_back(text.substr(start));
    return parts;
}

}  // namespace

std::vector<std::vector<std::string>> load_classes(const std::filesystem::path& bundle, const Manifest& manifest) {
    std::vector<std::vector<std::string>> names;
    if (!manifest.classes) return names;
    const std::filesystem::path path = bundle / *manifest.classes;
    std::vector<std::string> lines = split(read_text(path, limits::TEXT_BYTES), "\n");
    if (lines.back().empty()) lines.pop_back();
    for (std::string& line : lines) {
        if (!line.empty() && line.back() == '\r') line.pop_back();
        names.push_back(split(line, ", "));
        for (const std::string& name : names.back()) {
            if (is_printable(name) && characters(name) <= limits::CLASS_NAME_LENGTH) continue;
            throw bad_bundle(path.string() + ": line " + std::to_string(names.size()) + ": expected printable names of at most " +
                             std::to_string(limits::CLASS_NAME_LENGTH) + " characters, found " + excerpt(name));
        }
    }
    if (std::int64_t(names.size()) != manifest.model.num_classes) {
        throw bad_bundle(path.string() + ": expected " + std::to_string(manifest.model.num_classes) +
                         " lines, one for each class, found " + std::to_string(names.size()));
    }
    return names;
}

}  // namespace var_edge_impl
