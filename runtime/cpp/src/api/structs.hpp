// The structs of the C API through the versions: fields are only appended, so a shorter one is an older one.
//
// A new field must begin behind the older struct, including its padding: an older program does not set its padding.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include "errors.hpp"
#include "runtime/sampling.hpp"
#include "var_edge.h"

namespace var_edge_impl {

constexpr std::size_t LARGEST_STRUCT = 4096;  // bytes; a larger size was never set by a program

// The defaults of a struct, and its size in 0.1.0, which is the smallest.
template <typename T>
struct Known {
    static constexpr std::size_t OLDEST = sizeof(T);
    static T defaults() { return {}; }
};

template <>
struct Known<var_edge_options> {
    static constexpr std::size_t OLDEST = offsetof(var_edge_options, device);
    static var_edge_options defaults() {
        var_edge_options options{};
        options.verify = 1;
        options.device = -1;
        options.log_level = VAR_EDGE_LOG_WARNING;
        return options;
    }
};

template <>
struct Known<var_edge_settings> {
    static constexpr std::size_t OLDEST = offsetof(var_edge_settings, seeds);
    static var_edge_settings defaults() {
        const Sampling sampling;
        var_edge_settings settings{};
        settings.cfg = sampling.cfg;
        settings.top_k = VAR_EDGE_TOP_K_DEFAULT;
        settings.top_p = sampling.top_p;
        settings.batch = BATCH;
        return settings;
    }
};

template <>
struct Known<var_edge_info> {
    static constexpr std::size_t OLDEST = offsetof(var_edge_info, batches);
    static var_edge_info defaults() { return {}; }
};

// Writes the defaults into the first `size` bytes of a caller's struct.
template <typename T>
void write_defaults(T* given, std::size_t size) {
    if (!given || size < Known<T>::OLDEST || size > LARGEST_STRUCT) return;
    const T defaults = Known<T>::defaults();
    std::memset(static_cast<void*>(given), 0, size);
    std::memcpy(static_cast<void*>(given), &defaults, std::min(size, sizeof(T)));
    given->struct_size = size;
}

template <typename T>
std::size_t checked_size(const T* given, const char* name) {
    static_assert(Known<T>::OLDEST % alignof(T) == 0, "a field lies in the padding of the older struct");
    const std::size_t size = given->struct_size;
    // A size that is no multiple of the alignment would cut a field.
    if (size >= Known<T>::OLDEST && size <= LARGEST_STRUCT && size % alignof(T) == 0) return size;
    throw bad_argument(std::string(name) + ".struct_size: expected " + std::to_string(sizeof(T)) + ", found " +
                       std::to_string(size) + "; set it to sizeof of the struct");
}

// Returns the caller's struct, with the defaults for fields that it is too short to have. Null means all defaults.
template <typename T>
T read_struct(const T* given, const char* name) {
    T value = Known<T>::defaults();
    if (!given) return value;
    const std::size_t size = checked_size(given, name);
    const char* bytes = reinterpret_cast<const char*>(given);
    if (size > sizeof(T) && std::any_of(bytes + sizeof(T), bytes + size, [](char byte) { return byte != 0; })) {
        throw bad_argument(std::string(name) + ": sets a field that VAR Edge " VAR_EDGE_VERSION
                                               " does not know; set it to 0 or use a newer library");
    }
    std::memcpy(&value, given, std::min(size, sizeof(T)));
    value.struct_size = sizeof(T);
    return value;
}

// Fills the caller's struct as far as it is long, and fields that only its newer header knows with 0.
template <typename T>
void write_struct(T* given, T value, const char* name) {
    value.struct_size = checked_size(given, name);
    std::memset(static_cast<void*>(given), 0, value.struct_size);
    std::memcpy(static_cast<void*>(given), &value, std::min(value.struct_size, sizeof(T)));
}

}  // namespace var_edge_impl
