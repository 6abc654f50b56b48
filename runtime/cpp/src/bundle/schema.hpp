// Reads JSON and refuses what is not expected; a message names the place as `where.key[2]`. Twin of
// runtime/bundle/schema.py.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "errors.hpp"
#include "limits.hpp"

namespace var_edge_impl {

bool is_name(const std::string& text);        // printable, of 1 to limits::NAME_BYTES bytes
bool is_plain_name(const std::string& text);  // a name without folders, which cannot lead out of one

class Strict {
  public:
    Strict(const nlohmann::json& value, std::string where) : value_(&value), where_(std::move(where)) {}

    // Returns this, which must be an object with exactly these keys.
    Strict with(std::initializer_list<const char*> keys) const;
    Strict operator[](const char* key) const;

    // Each returns the value, and throws Error BAD_BUNDLE unless it is of this kind.

    std::int64_t integer() const;
    std::int64_t integer(const limits::Range& allowed) const;
    double number(const limits::Range& allowed) const;
    std::string string() const;
    std::string one_of(std::initializer_list<const char*> known) const;
    bool boolean() const;
    std::string name() const;
    std::string plain_name() const;
    std::optional<std::string> string_or_null() const;
    std::vector<Strict> list(std::size_t most = limits::COUNT) const;
    std::map<std::string, Strict> members(std::size_t most = limits::COUNT) const;
    std::map<std::string, Strict> named(std::size_t most = limits::COUNT) const;  // members whose keys are names
    std::vector<std::int64_t> integers() const;
    std::vector<std::int64_t> shape() const;  // sizes of at most limits::RANK axes
    bool is_string() const;
    const std::string& where() const { return where_; }

    Error wrong(const std::string& expected) const;

  private:
    void at_most(std::size_t most) const;

    const nlohmann::json* value_;
    std::string where_;
};

// Throws Error BAD_BUNDLE unless the document is of this schema_version.
void check_schema(const nlohmann::json& document, std::int64_t expected, const std::string& where,
                  const std::string& advice);

}  // namespace var_edge_impl
