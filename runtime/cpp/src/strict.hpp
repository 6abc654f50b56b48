// JSON that refuses what it does not expect, naming the place as `where.key[2]`. Twin of runtime/strict.py.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "error.hpp"

namespace var_edge_impl {

class Strict {
  public:
    Strict(const nlohmann::json& value, std::string where) : value_(&value), where_(std::move(where)) {}

    // The members of an object with exactly these keys.
    Strict with(std::initializer_list<const char*> keys) const;
    Strict operator[](const char* key) const { return {value_->at(key), where_ + "." + key}; }

    std::int64_t integer() const;
    std::string string() const;
    bool boolean() const;
    std::optional<std::string> string_or_null() const;
    std::vector<Strict> list() const;
    std::map<std::string, Strict> members() const;
    std::vector<std::int64_t> integers() const;
    bool is_string() const { return value_->is_string(); }
    const std::string& where() const { return where_; }

    Error wrong(const std::string& expected) const;

  private:
    const nlohmann::json* value_;
    std::string where_;
};

// Parses `text`, checks its schema_version and hands its root to `read`. Throws Error BAD_BUNDLE.
nlohmann::json parse_json(const std::string& text, const std::string& where);
void check_schema(const nlohmann::json& document, std::int64_t expected, const std::string& where,
                  const std::string& advice);

}  // namespace var_edge_impl
