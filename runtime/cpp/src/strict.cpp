#include "strict.hpp"

#include <set>

namespace var_edge_impl {

using nlohmann::json;

Error Strict::wrong(const std::string& expected) const {
    return bad_bundle(where_ + ": expected " + expected + ", found " +
                      value_->dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 60));
}

Strict Strict::with(std::initializer_list<const char*> keys) const {
    if (!value_->is_object()) throw wrong("an object");
    const std::set<std::string> expected(keys.begin(), keys.end());
    for (const auto& [key, _] : value_->items()) {
        if (!expected.count(key)) throw bad_bundle(where_ + ": unknown key(s) " + key);
    }
    for (const auto& key : expected) {
        if (!value_->contains(key)) throw bad_bundle(where_ + ": missing key(s) " + key);
    }
    return *this;
}

std::int64_t Strict::integer() const {
    if (!value_->is_number_integer()) throw wrong("an integer");
    if (value_->is_number_unsigned() && value_->get<std::uint64_t>() > INT64_MAX) throw wrong("an integer below 2**63");
    return value_->get<std::int64_t>();
}

std::string Strict::string() const {
    if (!value_->is_string()) throw wrong("a string");
    return value_->get<std::string>();
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

std::vector<Strict> Strict::list() const {
    if (!value_->is_array()) throw wrong("a list");
    std::vector<Strict> items;
    for (std::size_t i = 0; i < value_->size(); ++i) items.emplace_back((*value_)[i], where_ + "[" + std::to_string(i) + "]");
    return items;
}

std::map<std::string, Strict> Strict::members() const {
    if (!value_->is_object()) throw wrong("an object");
    std::map<std::string, Strict> found;
    for (const auto& [key, value] : value_->items()) found.emplace(key, Strict(value, where_ + "." + key));
    return found;
}

std::vector<std::int64_t> Strict::integers() const {
    std::vector<std::int64_t> numbers;
    for (const Strict& item : list()) numbers.push_back(item.integer());
    return numbers;
}

json parse_json(const std::string& text, const std::string& where) {
    json document = json::parse(text, nullptr, false);
    if (document.is_discarded()) throw bad_bundle(where + ": cannot be read: no valid JSON");
    return document;
}

void check_schema(const json& document, std::int64_t expected, const std::string& where, const std::string& advice) {
    const json* version = document.is_object() && document.contains("schema_version") ? &document["schema_version"] : nullptr;
    if (version && version->is_number_integer() && *version == expected) return;
    const std::string found = version ? version->dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 60) : "none";
    throw bad_bundle(where + ": expected schema_version " + std::to_string(expected) + ", found " + found + "; " + advice);
}

}  // namespace var_edge_impl
