#include "bundle/classes.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "errors.hpp"
#include "files/bounded.hpp"
#include "limits.hpp"

namespace var_edge_impl {

namespace {

constexpr const char* NO_CLASS = "none";
constexpr std::size_t LISTED = 5;  // labels in a message, at most

std::vector<std::string> split(const std::string& text, const std::string& separator) {
    std::vector<std::string> parts;
    std::size_t start = 0;
    for (std::size_t end; (end = text.find(separator, start)) != text.npos; start = end + separator.size()) {
        parts.push_back(text.substr(start, end - start));
    }
    parts.push_back(text.substr(start));
    return parts;
}

// In lower case: ASCII, and in UTF-8 the letters of Latin-1, Greek and Cyrillic.
std::string lower(const std::string& text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto byte = std::uint8_t(text[i]);
        const auto next = i + 1 < text.size() ? std::uint8_t(text[i + 1]) : std::uint8_t(0);
        unsigned code = (byte & 0xE0) == 0xC0 ? (byte & 0x1Fu) << 6 | (next & 0x3Fu) : byte;
        if (code >= 'A' && code <= 'Z') code += 32;
        else if (code >= 0xC0 && code <= 0xDE && code != 0xD7) code += 32;
        else if ((code >= 0x391 && code <= 0x3A9) || (code >= 0x410 && code <= 0x42F)) code += 32;
        else if (code >= 0x400 && code <= 0x40F) code += 80;
        if ((byte & 0xE0) != 0xC0) {
            out += byte < 0x80 ? char(code) : text[i];
            continue;
        }
        out += char(0xC0 | code >> 6);
        out += char(0x80 | (code & 0x3F));
        ++i;
    }
    return out;
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// What a text is compared by: lower case, one space where there are several, none at the ends.
std::string key_of(const std::string& text) {
    std::string key;
    for (const char c : lower(text)) {
        if (!is_space(c)) key += c;
        else if (!key.empty() && key.back() != ' ') key += ' ';
    }
    if (!key.empty() && key.back() == ' ') key.pop_back();
    return key;
}

std::string joined(const std::vector<std::string>& names, const char* separator) {
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : separator) + name;
    return all;
}

using Labels = std::set<std::int64_t>;
using Known = std::map<std::string, Labels>;  // by key

Known names_of(const ClassNames& names) {
    Known known;
    for (std::size_t label = 0; label < names.size(); ++label) {
        for (const std::string& name : names[label]) known[key_of(name)].insert(std::int64_t(label));
    }
    return known;
}

// What means a class as it stands: names, and what the Python command lists of it, "134 crane (134)".
Known texts_of(const ClassNames& names, const Known& known) {
    Known exact = known;
    for (std::size_t label = 0; label < names.size(); ++label) {
        const std::string number = std::to_string(label);
        std::vector<std::string> printed;
        for (const std::string& name : names[label]) {
            printed.push_back(known.at(key_of(name)).size() > 1 ? name + " (" + number + ")" : name);
        }
        const std::string line = joined(printed, "; ");
        for (const std::string& text : printed) exact.emplace(key_of(text), Labels{std::int64_t(label)});
        for (const std::string& text : {line, number + " " + line, joined(names[label], ", ")}) {
            exact.emplace(key_of(text), Labels{std::int64_t(label)});
        }
    }
    return exact;
}

std::string listed(const Labels& labels, const ClassNames& names) {
    std::string text;
    std::size_t count = 0;
    for (std::int64_t label : labels) {
        if (count++ == LISTED) break;
        text += (text.empty() ? "" : ", ") + std::to_string(label) + " (" + names[std::size_t(label)].front() + ")";
    }
    return text + (labels.size() > LISTED ? " or " + std::to_string(labels.size() - LISTED) + " more" : "");
}

std::int64_t number_of(const std::string& digits, std::int64_t num_classes) {
    const std::size_t start = std::min(digits.find_first_not_of('0'), digits.size() - 1);
    const std::string last = std::to_string(num_classes), plain = digits.substr(start);
    if (plain.size() < last.size() || (plain.size() == last.size() && plain <= last)) return std::stoll(plain);
    throw bad_argument("label: expected 0 to " + last + " (" + last + " means no class), found " + excerpt(digits));
}

}  // namespace

ClassNames load_classes(const std::filesystem::path& bundle, const Manifest& manifest) {
    ClassNames names;
    if (!manifest.classes) return names;
    const std::filesystem::path path = bundle / *manifest.classes;
    std::vector<std::string> lines = split(read_text(path, limits::TEXT_BYTES), "\n");
    if (lines.size() > 1 && lines.back().empty()) lines.pop_back();
    for (std::string& line : lines) {
        if (!line.empty() && line.back() == '\r') line.pop_back();
        names.push_back(split(line, ", "));
        for (const std::string& name : names.back()) {
            if (is_printable(name) && characters(name) <= limits::CLASS_NAME_LENGTH) continue;
            throw bad_bundle(path.string() + ": line " + std::to_string(names.size()) +
                             ": expected printable names of at most " + std::to_string(limits::CLASS_NAME_LENGTH) +
                             " characters, found " + excerpt(name));
        }
    }
    if (std::int64_t(names.size()) != manifest.model.num_classes) {
        throw bad_bundle(path.string() + ": expected " + std::to_string(manifest.model.num_classes) +
                         " lines, one for each class, found " + std::to_string(names.size()));
    }
    return names;
}

std::int64_t find_label(const std::string& text, const ClassNames& names, std::int64_t num_classes) {
    const bool digits = !text.empty() && text.find_first_not_of("0123456789") == text.npos;
    if (digits) return number_of(text, num_classes);
    const std::string key = key_of(text), what = "label " + excerpt(text) + ": ";
    if (key == NO_CLASS) return num_classes;
    if (names.empty()) throw bad_argument(what + "this bundle has no class names; give a number");
    const Known known = names_of(names), exact = texts_of(names, known);
    const auto same = exact.find(key);
    Labels found = same == exact.end() ? Labels() : same->second;
    const auto begins = [&](const std::string& name) { return !key.empty() && name.compare(0, key.size(), key) == 0; };
    if (found.empty()) {
        for (auto next = known.lower_bound(key); next != known.end() && begins(next->first); ++next) {
            found.insert(next->second.begin(), next->second.end());
        }
    }
    if (found.size() == 1) return *found.begin();
    if (!found.empty()) throw bad_argument(what + "may be " + listed(found, names) + "; give the number");
    throw bad_argument(what + "no class has this name; var_edge_class_name returns the names");
}

}  // namespace var_edge_impl
