#include "bundle/schema.hpp"

#include <set>

#include <nlohmann/json.hpp>

namespace var_edge_impl {

using nlohmann::json;

bool is_name(const std::string& text) {
    return !text.empty() && text.size() <= limits::NAME_BYTES && is_printable(text);
}

bool is_plain_name(const std::string& text) {
    return is_name(text) && text != "." && text != ".." && text.find_first_of("/\\") == text.npos;
}

namespace {

// A value in a message: never the whole of a large one.
std::string shown(const json& value) {
    if (value.is_object()) return "an object of " + std::to_string(value.size());
    if (value.is_array()) return "a list of " + std::to_string(value.size());
    if (value.is_string()) return excerpt(value.get_ref<const std::string&>());
    if (value.is_number_float()) return number(value.get<double>());
    return value.dump();
}

std::string shown(const limits::Range& range) {
    return (range.above ? "above " : "") + number(range.least) + " to " + number(range.most);
}

// Keys are parts of places, and none is shown whole if it is long.
std::string shown_key(const std::string& key) { return is_name(key) && key.size() <= 60 ? key : excerpt(key); }

}  // namespace

Error Strict::wrong(const std::string& expected) const {
    return bad_bundle(where_ + ": expected " + expected + ", found " + shown(*value_));
}

void Strict::at_most(std::size_t most) const {
    if (value_->size() > most) throw wrong("at most " + std::to_string(most) + " entries");
}

Strict Strict::with(std::initializer_list<const char*> keys) const {
    if (!value_->is_object()) throw wrong("an object");
    const std::set<std::string> expected(keys.begin(), keys.end());
    for (const auto& [key, _] : value_->items()) {
        if (!expected.count(key)) throw bad_bundle(where_ + ": unknown key(s) " + shown_key(key));
    }
    for (const auto& key : expected) {
        if (!value_->contains(key)) throw bad_bundle(where_ + ": missing key(s) " + key);
    }
    return *this;
}

Strict Strict::operator[](const char* key) const { return {value_->at(key), where_ + "." + key}; }

std::int64_t Strict::integer() const {
    if (!value_->is_number_integer()) throw wrong("an integer");
    return value_->get<std::int64_t>();
}

std::int64_t Strict::integer(const limits::Range& allowed) const {
    const std::int64_t value = integer();
    if (!allowed.holds(double(value))) throw wrong(shown(allowed));
    return value;
}

double Strict::number(const limits::Range& allowed) const {
    if (!value_->is_number()) throw wrong("a number");
    const double value = value_->get<double>();
    if (!allowed.holds(value)) throw wrong(shown(allowed));
    return value;
}

bool Strict::is_string() const { return value_->is_string(); }

std::string Strict::string() const {
    if (!value_->is_string()) throw wrong("a string");
    return value_->get<std::string>();
}

std::string Strict::one_of(std::initializer_list<const char*> known) const {
    std::string listed;
    for (const char* text : known) {
        if (value_->is_string() && value_->get_ref<const std::string&>() == text) return text;
        listed += (listed.empty() ? "" : ", ") + std::string(text);
    }
    throw wrong("one of " + listed);
}

bool Strict::boolean() const {
    if (!value_->is_boolean()) throw wrong("true or false");
    return value_->get<bool>();
}

std::optional<std::string> Strict::string_or_null() const {
    if (value_->is_null()) return std::nullopt;
    if (!value_->is_string()) throw wrong("a string or null");
    return value_->get<std::string>();
}

std::string Strict::name() const {
    std::string text = string();
    if (!is_name(text)) throw wrong("a printable name of 1 to " + std::to_string(limits::NAME_BYTES) + " bytes");
    return text;
}

std::string Strict::plain_name() const {
    std::string text = string();
    if (!is_plain_name(text)) throw wrong("a printable name without folders");
    return text;
}

std::vector<Strict> Strict::list(std::size_t most) const {
    if (!value_->is_array()) throw wrong("a list");
    at_most(most);
    std::vector<Strict> items;
    for (std::size_t i = 0; i < value_->size(); ++i) {
        items.emplace_back((*value_)[i], where_ + "[" + std::to_string(i) + "]");
    }
    return items;
}

std::map<std::string, Strict> Strict::members(std::size_t most) const {
    if (!value_->is_object()) throw wrong("an object");
    at_most(most);
    std::map<std::string, Strict> found;
    for (const auto& [key, value] : value_->items()) found.emplace(key, Strict(value, where_ + "." + shown_key(key)));
    return found;
}

std::map<std::string, Strict> Strict::named(std::size_t most) const {
    std::map<std::string, Strict> found = members(most);
    for (const auto& [key, _] : found) {
        if (!is_name(key)) {
            throw bad_bundle(where_ + ": expected printable names of 1 to " + std::to_string(limits::NAME_BYTES) +
                             " bytes, found " + excerpt(key));
        }
    }
    return found;
}

std::vector<std::int64_t> Strict::integers() const {
    std::vector<std::int64_t> numbers;
    for (const Strict& item : list(SIZE_MAX)) numbers.push_back(item.integer());
    return numbers;
}

std::vector<std::int64_t> Strict::shape() const {
    std::vector<std::int64_t> sizes;
    for (const Strict& item : list(limits::RANK)) sizes.push_back(item.integer(limits::SIZE));
    return sizes;
}

void check_schema(const json& document, std::int64_t expected, const std::string& where, const std::string& advice) {
    const json* version =
        document.is_object() && document.contains("schema_version") ? &document["schema_version"] : nullptr;
    if (version && version->is_number_integer() && *version == expected) return;
    const std::string found = version ? shown(*version) : "none";
    throw bad_bundle(where + ": expected schema_version " + std::to_string(expected) + ", found " + found + "; " +
                     advice);
}

}  // namespace var_edge_impl
